"""Checks of the values that a model's `config.json` gives."""

import dataclasses
import math
from typing import Any

from kpod_jax.utils.errors import UserError


def check_types(config: Any, family: str) -> None:
    """Checks that the fields of a configuration have the type of their default.

    Integers must be at least 1 (token ids 0), floats positive and finite (rates may be 0).

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
            minimum = 0 if field.name.endswith("_token_id") else 1
            if type(value) is not int or value < minimum:
                expected = f"an integer >= {minimum}"
        elif kind is float:
            is_rate = field.name.endswith("_rate")
            if not is_number(value) or value < 0 or (value == 0 and not is_rate):
                expected = "a number >= 0" if is_rate else "a number > 0"
        elif kind is bool and type(value) is not bool:
            expected = "true or false"
        if expected is not None:
            raise UserError(
                f"{family} configuration: {field.name} is {value!r}; expected {expected}."
            )


def is_number(value: Any) -> bool:
    """Returns whether a JSON value is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)
