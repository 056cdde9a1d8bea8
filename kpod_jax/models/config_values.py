"""Checks of the values that a model's `config.json` gives."""

import dataclasses
from typing import Any

from kpod_jax.utils import schema
from kpod_jax.utils.errors import UserError

# Beyond these, values are damaged: the largest models have 10 ** 12 parameters and 128 layers.
_MAX_PARAMETERS = 10**13
MAX_LAYERS = 1 << 12
_MAX_SIZE = 1 << 24
_MAX_INTEGER = (1 << 31) - 1
_MAX_FLOAT = 1e30


def check_types(config: Any, family: str) -> None:
    """Checks that the fields of a configuration have the type of their default.

    Integers must be at least 1 (token ids 0) and not absurdly large, floats positive and finite
    (rates may be 0).

    Args:
      config: a dataclass whose fields all have defaults.
      family: named in the error.

    Raises:
      UserError: a value has another type or is out of range.
    """
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), type(field.default)
        expected = None
        if kind is int:
            minimum, maximum = _range(field.name)
            if type(value) is not int or value < minimum:
                expected = f"an integer >= {minimum}"
            elif value > maximum:
                expected = f"{maximum} at most"
        elif kind is float:
            is_rate = field.name.endswith("_rate")
            if not schema.is_number(value) or value < 0 or (value == 0 and not is_rate):
                expected = "a number >= 0" if is_rate else "a number > 0"
            elif value > _MAX_FLOAT:
                expected = f"{_MAX_FLOAT:g} at most"
        elif kind is bool and type(value) is not bool:
            expected = "true or false"
        elif kind is str and type(value) is not str:
            expected = "text"
        if expected is not None:
            raise UserError(
                f"{family} configuration: {field.name} is {schema.shown(value)}; expected "
                f"{expected}."
            )


def _range(name: str) -> tuple[int, int]:
    """Returns the smallest and the largest value of an integer field."""
    if name.endswith("_token_id"):
        return 0, _MAX_INTEGER
    if "layers" in name:
        return 1, MAX_LAYERS
    return 1, _MAX_INTEGER if "max_" in name else _MAX_SIZE


def check_parameters(count: int, family: str) -> None:
    """Checks the number of parameters that all sizes together give.

    Raises:
      UserError: no model has so many.
    """
    if count > _MAX_PARAMETERS:
        raise UserError(
            f"{family} configuration: its sizes give {count:.1e} parameters; expected "
            f"{_MAX_PARAMETERS:.0e} at most."
        )
