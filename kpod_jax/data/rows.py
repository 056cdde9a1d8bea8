"""A row of a table, whatever file or data set it is from."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      index: row number from 0; for JSONL the line number from 0.
      place: location to show to the user, such as file and line.
      values: values by column; None if the row is invalid.
      problem: reason why the row is invalid, or "".
    """

    index: int
    place: str
    values: Mapping[str, Any] | None
    problem: str
