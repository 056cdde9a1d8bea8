"""Reads JSONL files from any source: one JSON object per line."""

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from kpod_jax.data.text_files import (
    MAX_RECORD,
    MAX_SPACE,
    MAX_TEXT,
    TOO_LONG,
    bounded_lines,
    has_endless_space,
    not_utf8,
    open_text,
)
from kpod_jax.utils.files import PathLike

# The largest whole number that a float holds exactly.
_MAX_WHOLE = 2**53


def read_rows(path: PathLike) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    """Reads a file line by line, reporting invalid lines and continuing.

    Accepts gzip, a byte order mark, Windows line endings and blank lines.

    Yields:
      (line number from 1, object or None, reason why the line is invalid or "").

    Raises:
      UserError: the file cannot be read.
    """
    with open_text(path) as file:
        for number, line in enumerate(bounded_lines(file), 1):
            if line.strip():
                yield number, *_parse(line)


def _parse(line: str) -> tuple[dict[str, Any] | None, str]:
    if len(line) > MAX_RECORD:
        return None, TOO_LONG
    if bad := not_utf8(line):
        byte = len(line[: bad.start()].encode()) + 1
        return None, f"is not UTF-8 text (byte {byte} of the line); save the file as UTF-8"
    try:
        return as_object(json.loads(line, object_pairs_hook=unique_keys))
    except ValueError as error:
        return None, f"is not valid JSON: {error}"
    except RecursionError:
        return None, "is JSON nested too deeply to parse"


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object of JSON, as the hook of a decoder.

    Raises:
      ValueError: it has a key twice, so that one value would be lost.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in value if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} is repeated")
    return value


def as_object(value: Any) -> tuple[dict[str, Any] | None, str]:
    """Returns a parsed value if it is an object, else None and the reason."""
    if isinstance(value, dict):
        return value, ""
    return None, f"is not a JSON object (got {type(value).__name__})"


def text_column(row: Mapping[str, Any], column: str, *, required: bool = True) -> str:
    """Returns the stripped text of a column; numbers are converted to text.

    Args:
      row: the columns of a row, by name.
      column: name of the column.
      required: whether the column must exist and not be empty; if False, "" is returned instead.

    Raises:
      ValueError: the column is missing, empty or of another type.
    """
    if column not in row:
        if not required:
            return ""
        raise ValueError(
            f"has no {column!r}; its columns are {', '.join(map(repr, row)) or 'none'}"
        )
    value = row[column]
    if isinstance(value, np.generic):
        value = value.item()
    is_nan = isinstance(value, float | Decimal) and math.isnan(value)
    if (value is None or is_nan) and not required:
        return ""
    if is_nan:
        raise ValueError(f"has an empty {column!r} (NaN, a missing number)")
    if isinstance(value, float | Decimal) and math.isinf(value):
        raise ValueError(f"has an infinite {column!r}")
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"has {column!r} of type {type(value).__name__}; expected text")
    if isinstance(value, str) and len(value) > MAX_TEXT:
        raise ValueError(
            f"has {column!r} of {len(value):,} characters; at most {MAX_TEXT:,} are read"
        )
    if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_WHOLE:
        value = int(value)  # Columns of whole numbers become floats where some are missing.
    text = str(value).strip()
    if not text and required:
        raise ValueError(f"has an empty {column!r}")
    if has_endless_space(text):
        raise ValueError(f"has more than {MAX_SPACE:,} spaces in a row in {column!r}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"has a lone surrogate (half a character) in {column!r}")
    return text
