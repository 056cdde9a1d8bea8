"""Reading files of one JSON object a line, whoever wrote them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from kpod_jax.utils.errors import UserError
from kpod_jax.utils.files import PathLike, as_path


def read_rows(path: PathLike) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    """Reads a file line by line; a broken line does not end it.

    A byte order mark, Windows line ends and blank lines are accepted.

    Yields:
      (line, counted from 1; its object, or None; what is wrong with the line, or "").

    Raises:
      UserError: the file cannot be read at all.
    """
    try:
        with as_path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, *_parse(line)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return (
            None,
            f"is not UTF-8 text (byte {error.start + 1} of the line); save the file as UTF-8",
        )
    except ValueError as error:
        return None, f"is not valid JSON: {error}"
    except RecursionError:
        return None, "is JSON that is nested too deeply"
    if not isinstance(row, dict):
        return None, f"is not a JSON object but {type(row).__name__}"
    return row, ""


def text_column(row: Mapping[str, Any], column: str, *, required: bool = True) -> str:
    """A column's text, stripped; a number counts as text.

    Args:
      row: a line's object.
      column: its name.
      required: whether it must be there and not empty; else "" stands for it.

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
    if value is None and not required:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"has a {column!r} of type {type(value).__name__}; expected a text")
    text = str(value).strip()
    if not text and required:
        raise ValueError(f"has an empty {column!r}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"has half a character (a lone surrogate) in {column!r}")
    return text
