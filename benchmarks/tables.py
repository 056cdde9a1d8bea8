"""Tables in the documents, between a marker of their name and the next empty line."""

import pathlib
from collections.abc import Sequence


def put(page: str, name: str, rows: Sequence[str]) -> None:
    """Replaces the table behind `<!-- name -->` in a Markdown page."""
    path, marker = pathlib.Path(page), f"<!-- {name} -->\n"
    before, rest = path.read_text().split(marker)
    path.write_text(before + marker + "\n".join(rows) + rest[rest.index("\n\n") :])
