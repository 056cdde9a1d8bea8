"""Reads the objects of a JSON file of any shape: lines, an array, or an object around an array."""

import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from kpod_jax.data import jsonl
from kpod_jax.data.rows import Row
from kpod_jax.data.text_files import not_utf8, open_text
from kpod_jax.utils.errors import UserError

_DECODER = json.JSONDecoder()
# Keys under which an object holds the array of its records.
_WRAPPERS = ("data", "rows", "records", "examples", "instances", "items", "train")
_BETWEEN = " \t\r\n,"


def read(path: pathlib.Path) -> Iterator[Row]:
    """Yields the objects of a file of JSON lines, a JSON array or objects over several lines.

    An array may also be the value of one of the keys `data`, `rows`, `records`, `examples`,
    `instances`, `items` or `train` of one object.

    Raises:
      UserError: the file cannot be read, or an array or a later object in it is not valid.
    """
    with open_text(path) as file:
        first = next((line for line in file if line.strip()), "")
    if _is_whole_line(first):
        return lines(path)
    with open_text(path) as file:
        text = file.read()
    elements = _elements(path, text)
    try:
        start = list(itertools.islice(elements, 1))
    except UserError:
        # A file of lines whose first one is broken; in an array there is nothing else to read.
        if text.lstrip().startswith("["):
            raise
        return lines(path)
    return itertools.chain(start, elements)


def _is_whole_line(line: str) -> bool:
    """Returns whether a line is a record, or broken beyond one."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return line.lstrip()[:1] not in ("{", "[")
    return not isinstance(value, list) and _wrapped(value) is None


def lines(path: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of a JSONL file.

    Raises:
      UserError: the file cannot be read.
    """
    for number, values, problem in jsonl.read_rows(path):
        yield Row(number - 1, f"{path}:{number}", values, problem)


def _elements(path: pathlib.Path, text: str) -> Iterator[Row]:
    """Yields the elements of an array, or the objects one after the other."""
    is_array = text.lstrip().startswith("[")
    place, line = len(text) - len(text.lstrip()) + is_array, 1
    counted = 0
    for index in itertools.count():
        while place < len(text) and text[place] in _BETWEEN:
            place += 1
        line, counted = line + text.count("\n", counted, place), place
        where = f"{path}:{line}" if line > 1 or not is_array else f"{path}:1 record {index + 1}"
        if place == len(text) and not is_array:
            return
        if is_array and text[place : place + 1] == "]":
            rest = text[place + 1 :].strip()
            if rest:
                raise UserError(
                    f"{path}:{line} has text after the end of the JSON array: {rest:.40}"
                )
            return
        try:
            value, end = _DECODER.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{error.lineno} is not valid JSON: {error.msg} (column {error.colno}, in "
                f"record {index + 1} of the file). Repair it, or write one object per line."
            ) from error
        except ValueError as error:  # A number of thousands of digits.
            raise UserError(f"{where} is not valid JSON: {error}.") from error
        except RecursionError as error:
            raise UserError(f"{where} is JSON nested too deeply to parse.") from error
        if not is_array and index == 0 and (inner := _wrapped(value)) is not None:
            for number, one in enumerate(inner):
                yield Row(number, f"{path} record {number + 1}", *jsonl.as_object(one))
        elif not_utf8(text[place:end]):
            yield Row(index, where, None, "is not UTF-8 text; save the file as UTF-8")
        else:
            yield Row(index, where, *jsonl.as_object(value))
        place = end


def _wrapped(value: Any) -> list[Any] | None:
    """Returns the array of objects that an object holds, unless the object is a record itself."""
    if not isinstance(value, dict):
        return None
    arrays = (value.get(key) for key in _WRAPPERS)
    return next(
        (a for a in arrays if isinstance(a, list) and a and all(isinstance(x, dict) for x in a)),
        None,
    )
