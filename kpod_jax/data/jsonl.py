"""Reads JSONL files from any source: one JSON object per line."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from kpod_jax.utils.errors import UserError
from kpod_jax.utils.files import PathLike, as_path


def read_rows(path: PathLike) -> Iterator[tuple[int, dict[str, Any] | None, str]]:
    """Reads a file line by line, reporting invalid lines and continuing.

    Accepts a byte order mark, Windows line endings and blank lines.

    Yields:
      (line number from 1, object or None, reason why the line is invalid or "").

    Raises:
      UserError: the file cannot be read.
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
        return None, "is JSON nested too deeply to parse"
    if not isinstance(row, dict):
        return None, f"is not a JSON object (got {type(row).__name__})"
    return row, ""


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
    if value is None and not required:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"has a {column!r} of type {type(value).__name__}; expected text")
    text = str(value).strip()
    if not text and required:
        raise ValueError(f"has an empty {column!r}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"has a lone surrogate (half a character) in {column!r}")
    return text
