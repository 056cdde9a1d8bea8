"""Tables in the documents, each after a marker with its name, and flags shared by benchmarks."""

import itertools
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from kpod_jax.utils import files

WRITE = flags.DEFINE_bool("write", False, "Writes the tables to their document in docs/.")
ONLY = flags.DEFINE_list("only", [], "Tables, or groups of rows; default: all.")
RUN = flags.DEFINE_string("run", None, "Work directory of the run.")


def only(known: Sequence[str]) -> list[str]:
    """Returns the names in `--only`; exits if a name is unknown."""
    if unknown := [name for name in ONLY.value if name not in known]:
        sys.exit(f"--only={unknown[0]}: expected names among {', '.join(known)}")
    return ONLY.value


def put(page: str, name: str, rows: Sequence[str]) -> None:
    """Replaces the table after `<!-- name -->` in a Markdown page."""
    path = pathlib.Path(page)
    before, _, after = _parts(path, name)
    files.write_text(path, "\n".join([*before, *rows, *after]))


def get(page: str, name: str) -> list[str]:
    """Returns the table after `<!-- name -->` in a Markdown page."""
    return _parts(pathlib.Path(page), name)[1]


def _parts(path: pathlib.Path, name: str) -> tuple[list[str], list[str], list[str]]:
    """Splits a page into the lines up to the marker, the table, and the remaining lines."""
    lines = path.read_text().split("\n")
    start = lines.index(f"<!-- {name} -->") + 1
    table = list(itertools.takewhile(lambda line: line.startswith("|"), lines[start:]))
    return lines[:start], table, lines[start + len(table) :]
