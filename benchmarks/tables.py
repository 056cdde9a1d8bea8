"""Tables in the documents, each behind a marker of its name, and the flags that many share."""

import itertools
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from kpod_jax.utils import files

WRITE = flags.DEFINE_bool("write", False, "Puts the tables into their document, in docs/.")
ONLY = flags.DEFINE_list("only", [], "Tables, or groups of rows; none: all.")
RUN = flags.DEFINE_string("run", None, "Work directory of the run that is looked at.")


def only(known: Sequence[str]) -> list[str]:
    """What `--only` names; it ends the program where one of its names is unknown."""
    if unknown := [name for name in ONLY.value if name not in known]:
        sys.exit(f"--only={unknown[0]}: expected some of {', '.join(known)}")
    return ONLY.value


def put(page: str, name: str, rows: Sequence[str]) -> None:
    """Puts a table behind `<!-- name -->` in a Markdown page, instead of the one that was there."""
    path = pathlib.Path(page)
    before, _, after = _parts(path, name)
    files.write_text(path, "\n".join([*before, *rows, *after]))


def get(page: str, name: str) -> list[str]:
    """The table behind `<!-- name -->` in a Markdown page."""
    return _parts(pathlib.Path(page), name)[1]


def _parts(path: pathlib.Path, name: str) -> tuple[list[str], list[str], list[str]]:
    """A page's lines up to the marker, those of its table, and the rest."""
    lines = path.read_text().split("\n")
    start = lines.index(f"<!-- {name} -->") + 1
    table = list(itertools.takewhile(lambda line: line.startswith("|"), lines[start:]))
    return lines[:start], table, lines[start + len(table) :]
