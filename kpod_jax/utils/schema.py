"""Reads JSON files that others wrote: checks their size, syntax and the types of known keys."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from kpod_jax.utils.errors import UserError

# Larger files of settings are damaged.
_MAX_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a value must be.

    Attributes:
      description: shown after "expected".
      accepts: whether a value is of this kind.
    """

    description: str
    accepts: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Returns whether a JSON value is a finite number that a float holds."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # An integer of hundreds of digits.
        return False


def integer(minimum: int, maximum: int) -> Kind:
    """Returns the kind of integers of a range."""
    return Kind(
        f"an integer from {minimum} to {maximum}",
        lambda value: type(value) is int and minimum <= value <= maximum,
    )


def list_of(kind: Kind, plural: str) -> Kind:
    """Returns the kind of lists of a kind."""
    return Kind(
        f"a list of {plural}",
        lambda value: isinstance(value, list) and all(map(kind.accepts, value)),
    )


def either(*kinds: Kind) -> Kind:
    """Returns the kind of values of any of the kinds."""
    return Kind(
        " or ".join(kind.description for kind in kinds),
        lambda value: any(kind.accepts(value) for kind in kinds),
    )


NULL = Kind("null", lambda value: value is None)
TEXT = Kind("text", lambda value: isinstance(value, str))
BOOLEAN = Kind("true or false", lambda value: isinstance(value, bool))
NUMBER = Kind("a finite number", is_number)
POSITIVE = Kind("a number > 0", lambda value: is_number(value) and value > 0)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))


def check(values: Mapping[str, Any], kinds: Mapping[str, Kind], where: object = "") -> None:
    """Checks the values of the keys that are there; `where` begins the message.

    Raises:
      UserError: one is of another kind.
    """
    for key, kind in kinds.items():
        if key in values and not kind.accepts(values[key]):
            raise UserError(
                f"{where}{': ' if where else ''}{key} is {shown(values[key])}; expected "
                f"{kind.description}. Download or copy the file again."
            )


def read_object(
    path: pathlib.Path, kinds: Mapping[str, Kind] | None = None, max_bytes: int = _MAX_BYTES
) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Args:
      path: of the file.
      kinds: of the values of known keys.
      max_bytes: largest file that is read.

    Raises:
      UserError: the file is missing, too large or not JSON, or a value is of another kind.
    """
    try:
        if (size := path.stat().st_size) > max_bytes:
            raise UserError(f"Cannot read {path}: {size} bytes; expected {max_bytes} at most.")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise UserError(f"{path} is JSON nested too deeply to parse.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {shown(value)}; expected an object.")
    check(value, kinds or {}, path)
    return value


def shown(value: Any, limit: int = 80) -> str:
    """Returns a value as it is shown in errors: on one line, and not long."""
    if isinstance(value, str):
        value = value[:limit]
    return f"{value!r:.{limit}}"
