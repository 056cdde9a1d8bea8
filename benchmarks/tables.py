"""Tables in the documents, each behind a marker of its name, and the flags that many share."""

import itertools
import pathlib
from collections.abc import Sequence

from absl import flags

WRITE = flags.DEFINE_bool("write", False, "Puts the tables into their document, in docs/.")
RUN = flags.DEFINE_string("run", None, "Work directory of the run that is looked at.")


def put(page: str, name: str, rows: Sequence[str]) -> None:
    """Puts a table behind `<!-- name -->` in a Markdown page, instead of the one that was there."""
    path, marker = pathlib.Path(page), f"<!-- {name} -->"
    lines = path.read_text().split("\n")
    start = lines.index(marker) + 1
    rest = itertools.dropwhile(lambda line: line.startswith("|"), lines[start:])
    path.write_text("\n".join([*lines[:start], *rows, *rest]))
