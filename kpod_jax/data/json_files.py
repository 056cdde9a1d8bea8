"""Reads the objects of a JSON file of any shape: lines, an array, or an object around an array."""

import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import IO, Any

from kpod_jax.data import jsonl
from kpod_jax.data.rows import Row
from kpod_jax.data.text_files import MAX_RECORD, TOO_LONG, bounded_lines, not_utf8, open_text
from kpod_jax.utils.errors import UserError

_DECODER = json.JSONDecoder(object_pairs_hook=jsonl.unique_keys)
# Keys under which an object holds the array of its records.
_WRAPPERS = ("data", "rows", "records", "examples", "instances", "items", "train")
_BETWEEN = " \t\r\n,"
_LONGEST = 16  # Characters of a token of JSON other than text and numbers, or more.
_READ = 1 << 20  # Characters to read at least.
_MAX_WRAPPER = 1 << 30  # Characters of an object around an array, which is read whole.


def read(path: pathlib.Path) -> Iterator[Row]:
    """Yields the objects of a file of JSON lines, a JSON array or objects over several lines.

    An array may also be the value of one of the keys `data`, `rows`, `records`, `examples`,
    `instances`, `items` or `train` of one object.

    Raises:
      UserError: the file cannot be read, or an array or a later object in it is not valid.
    """
    with open_text(path) as file:
        first = next((line for line in bounded_lines(file) if line.strip()), "")
    if _is_whole_line(first):
        return lines(path)
    elements = _elements(path)
    try:
        start = list(itertools.islice(elements, 1))
    except UserError:
        # A file of lines whose first one is broken; in an array there is nothing else to read.
        if first.lstrip().startswith("["):
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


class _Text:
    """The part of a file from the next element on, of which no more is in memory than needed.

    Attributes:
      text: the characters read so far, of which the first `place` are done with.
      place: place of the next element.
      line: line of that place.
      ended: whether this is the rest of the file.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._before = 0  # Characters of the first line of `text` that are no more in it.
        self.text, self.place, self.line, self.ended = "", 0, 1, False

    def read(self) -> None:
        """Reads on, twice as far as before."""
        self._before = self.column(self.place) - 1
        self.text, self.place = self.text[self.place :], 0
        more = self._file.read(max(_READ, len(self.text)))
        self.text, self.ended = self.text + more, not more

    def skip(self, place: int) -> None:
        """Goes on to a place."""
        self.line += self.text.count("\n", self.place, place)
        self.place = place

    def column(self, place: int) -> int:
        """Returns the column of a place in its line, from 1."""
        start = self.text.rfind("\n", 0, place) + 1
        return place - start + 1 + (0 if start else self._before)

    def skip_between(self) -> None:
        """Goes on to the next character that is not between elements."""
        while True:
            place = self.place
            while place < len(self.text) and self.text[place] in _BETWEEN:
                place += 1
            self.skip(place)
            if place < len(self.text) or self.ended:
                return
            self.read()

    def is_certain(self, error: json.JSONDecodeError) -> bool:
        """Returns whether reading on could not mend an error."""
        is_open = error.msg.startswith("Unterminated") or error.pos > len(self.text) - _LONGEST
        return self.ended or not is_open

    def decode(self, maximum: int) -> tuple[Any, int]:
        """Returns the value at the place, and its end.

        Raises:
          ValueError: it is no JSON value of at most `maximum` characters.
          RecursionError: it is nested too deeply.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.place)
                if end < len(self.text) or self.ended:  # Else a number may go on.
                    return value, end
            except json.JSONDecodeError as error:
                if self.is_certain(error) or len(self.text) - self.place > maximum:
                    raise
            self.read()


def _elements(path: pathlib.Path) -> Iterator[Row]:
    """Yields the elements of an array, or the objects one after the other."""
    with open_text(path) as file:
        rest = _Text(file)
        rest.skip_between()
        if is_array := rest.text[rest.place : rest.place + 1] == "[":
            rest.skip(rest.place + 1)
        for index in itertools.count():
            rest.skip_between()
            in_line = rest.line == 1 and is_array
            where = f"{path}:1 record {index + 1}" if in_line else f"{path}:{rest.line}"
            if rest.place == len(rest.text) and not is_array:
                return
            if is_array and rest.text[rest.place : rest.place + 1] == "]":
                after = (rest.text[rest.place + 1 :] + file.read(_READ)).strip()
                if after:
                    raise UserError(
                        f"{path}:{rest.line} has text after the end of the JSON array: {after:.40}"
                    )
                return
            # The first object may hold the array.
            maximum = MAX_RECORD if is_array or index else _MAX_WRAPPER
            try:
                value, end = rest.decode(maximum)
            except json.JSONDecodeError as error:
                if not rest.is_certain(error):
                    raise UserError(f"{where} {TOO_LONG}, or lacks a quotation mark.") from error
                line = rest.line + rest.text.count("\n", rest.place, error.pos)
                raise UserError(
                    f"{path}:{line} is not valid JSON: {error.msg} (column "
                    f"{rest.column(error.pos)}, in record {index + 1} of the file). Repair it, or "
                    "write one object per line."
                ) from error
            except ValueError as error:  # A number of thousands of digits.
                raise UserError(f"{where} is not valid JSON: {error}.") from error
            except RecursionError as error:
                raise UserError(f"{where} is JSON nested too deeply to parse.") from error
            inner = _wrapped(value) if not is_array and index == 0 else None
            if inner is not None:
                for number, one in enumerate(inner):
                    yield Row(number, f"{path} record {number + 1}", *jsonl.as_object(one))
            elif not_utf8(rest.text[rest.place : end]):
                yield Row(index, where, None, "is not UTF-8 text; save the file as UTF-8")
            else:
                yield Row(index, where, *jsonl.as_object(value))
            rest.skip(end)


def _wrapped(value: Any) -> list[Any] | None:
    """Returns the array of objects that an object holds, unless the object is a record itself."""
    if not isinstance(value, dict):
        return None
    arrays = (value.get(key) for key in _WRAPPERS)
    return next(
        (a for a in arrays if isinstance(a, list) and a and all(isinstance(x, dict) for x in a)),
        None,
    )
