"""Keys of the configuration and their types: reads values from text and checks those of code."""

import ast
import functools
import numbers
from collections.abc import Mapping
from typing import Any

from kpod_jax.config import defaults
from kpod_jax.utils import config_dict
from kpod_jax.utils.errors import UserError, did_you_mean

_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_PLURALS = {int: "integers", float: "numbers", str: "names"}
_KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "text"}


@functools.cache
def default_values() -> Mapping[str, Any]:
    """Returns the default of every key."""
    return config_dict.flatten(defaults.get_config())


def current_key(key: str) -> str:
    """Returns the present name of a key.

    Raises:
      UserError: there is no such key.
    """
    keys = default_values()
    if (current := config_dict.current_name(key)) in keys:
        return current
    if inside := [name for name in keys if name.startswith(f"{key}.")]:
        raise UserError(f"{key} is a section of the configuration; set its keys, as {inside[0]}.")
    # A name without its section is the likeliest slip after a misspelt one.
    same = [name for name in keys if name.rpartition(".")[2] == key.rpartition(".")[2]]
    hint = did_you_mean(key, same if len(same) == 1 else keys)
    if len(same) == 1 and not hint:
        hint = f" (did you mean {same[0]!r}?)"
    raise UserError(f"No such configuration key: {key!r}{hint}. See docs/configuration.md.")


def from_text(key: str, text: str) -> Any:
    """Reads a key's value from text, such as "3", "1e-4", "true", "q,v" or "('q', 'v')".

    Raises:
      UserError: there is no such key, or the text is no value of its type.
    """
    default = default_values()[current_key(key)]
    try:
        if not isinstance(default, tuple):
            return _scalar(type(default), text)
        return tuple(_scalar(_item_type(default), item) for item in _items(text))
    except ValueError as error:
        raise UserError(f"{key}={text}: expected {_expected(default)}.") from error


def checked(key: str, value: Any) -> Any:
    """Returns a key's value as its type; text is read if the type is another one.

    Raises:
      UserError: there is no such key, or the value has another type.
    """
    key = current_key(key)
    default = default_values()[key]
    if isinstance(value, str) and not isinstance(default, str):
        return from_text(key, value)
    items = value if isinstance(value, list | tuple) else (value,)
    kind = _item_type(default) if isinstance(default, tuple) else type(default)
    # Only a tuple has several; integers are numbers; True is no number.
    allowed = {int: numbers.Integral, float: numbers.Real}.get(kind, kind)
    several = isinstance(value, list | tuple) and not isinstance(default, tuple)
    right = all(isinstance(i, allowed) and isinstance(i, bool) == (kind is bool) for i in items)
    if several or not right:
        raise UserError(f"{key}={value!r}: expected {_expected(default)}.")
    items = tuple(map(kind, items))
    return items if isinstance(default, tuple) else items[0]


def _item_type(default: tuple[Any, ...]) -> type:
    return type(default[0]) if default else str


def _scalar(kind: type, text: str) -> Any:
    if kind is not bool:
        return kind(text)
    if text.lower() not in _BOOLEANS:
        raise ValueError
    return _BOOLEANS[text.lower()]


def _items(text: str) -> list[str]:
    """Returns the items of a Python tuple or list, or of text separated by commas."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        bare = text.strip().strip("()[]").strip().removesuffix(",")
        return [item.strip().strip("'\"") for item in bare.split(",")] if bare else []
    return [str(item) for item in (value if isinstance(value, tuple | list) else (value,))]


def _expected(default: Any) -> str:
    if not isinstance(default, tuple):
        return _KINDS[type(default)]
    example = ",".join(map(str, default)) or "a,b"
    return f"{_PLURALS[_item_type(default)]} separated by commas, such as {example}"
