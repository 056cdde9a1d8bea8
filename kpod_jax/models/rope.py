"""Rotary positions: the scaling of their frequencies, as `config.json` gives it.

transformers 5 stores everything in `rope_parameters`; version 4 stores `rope_theta` and
`rope_scaling`, whose type was once named `type`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kpod_jax.utils.errors import UserError
from kpod_jax.utils.schema import is_number, shown

_KEYS = ("rope_parameters", "rope_scaling")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary frequencies for contexts longer than the original training context.

    Attributes:
      rope_type: a key of `_REQUIRED`; "default" does not scale.
      factor: divides the frequencies; for "llama3" and "yarn", only the low ones.
      low_freq_factor: "llama3" only: wavelengths above original / low are fully scaled.
      high_freq_factor: "llama3" only: wavelengths below original / high are not scaled.
      original_max_position_embeddings: "llama3" and "yarn": the original context length.
      beta_fast: "yarn" only: dimensions with more rotations in the original context are not scaled.
      beta_slow: "yarn" only: dimensions with fewer rotations are fully scaled.
      attention_factor: "yarn" only: multiplies queries and keys.
      truncate: "yarn" only: whether these two limits are rounded to whole dimensions.
    """

    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True

    def to_json(self) -> dict[str, Any]:
        """Returns `rope_scaling`, in the spelling of transformers 4 and 5."""
        names = (*_REQUIRED[self.rope_type], *_OPTIONAL.get(self.rope_type, ()))
        return {"rope_type": self.rope_type} | {name: getattr(self, name) for name in names}


# The settings of each type that have no default, and those that have one.
_REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": ("factor", "original_max_position_embeddings"),
}
_OPTIONAL = {"yarn": ("beta_fast", "beta_slow", "attention_factor", "truncate")}


def check_type(rope_type: str) -> None:
    """Checks that a type of scaling is supported.

    Raises:
      UserError: it is not.
    """
    if rope_type not in tuple(_REQUIRED):  # It may be of any type.
        raise UserError(
            f"LLaMA configuration: rope_type {shown(rope_type)} is not supported; expected one of "
            f"{', '.join(_REQUIRED)}."
        )


def from_json(
    value: Mapping[str, Any], default_theta: float, max_positions: int
) -> tuple[float, RopeScaling]:
    """Reads the base of the frequencies and their scaling.

    Args:
      value: contents of a `config.json`.
      default_theta: the base if it gives none.
      max_positions: original context length if it gives none.

    Raises:
      UserError: the scaling is not supported or not complete, or is given twice and differs.
    """
    given = [_flat(value[key], key) for key in _KEYS if value.get(key)]
    found = {_scaling(rope, value, max_positions) for rope in given}
    if len(found) > 1:
        raise UserError(f"{' and '.join(_KEYS)} differ. Remove the one that is wrong.")
    thetas = [rope.get("rope_theta") for rope in given] + [value.get("rope_theta")]
    theta = next((theta for theta in thetas if theta is not None), default_theta)
    if not is_number(theta) or theta <= 0:
        raise UserError(f"rope_theta is {shown(theta)}; expected a number > 0.")
    return float(theta), found.pop() if found else RopeScaling()


def _flat(rope: Any, key: str) -> Mapping[str, Any]:
    """Returns the settings, which may be given for each type of layer, if they are all equal."""
    if not isinstance(rope, Mapping):
        raise UserError(f"{key} is {shown(rope)}; expected an object.")
    parts = [part for part in rope.values() if isinstance(part, Mapping)]
    if not parts:
        return rope
    if len(parts) < len(rope) or any(part != parts[0] for part in parts):
        raise UserError(f"{key} differs between types of layers, which is not supported.")
    return parts[0]


def _scaling(rope: Mapping[str, Any], value: Mapping[str, Any], max_positions: int) -> RopeScaling:
    kinds = (rope.get("rope_type"), rope.get("type"))
    kind = next((kind for kind in kinds if kind is not None), "default")
    check_type(kind)
    original = "original_max_position_embeddings"
    given = {key: part for key, part in rope.items() if part is not None}
    if given.get("partial_rotary_factor", 1) != 1:
        raise UserError("partial_rotary_factor below 1 is not supported; expected 1.")
    if value.get(original) is not None:
        given[original] = value[original]
    given.setdefault(original, max_positions)
    sizes = (max_positions, given[original])
    if kind == "yarn" and "factor" not in given and all(is_number(n) and n > 0 for n in sizes):
        given["factor"] = max_positions / given[original]
    fields: dict[str, Any] = {}
    for name in (*_REQUIRED[kind], *_OPTIONAL.get(kind, ())):
        if name not in given:
            if name in _REQUIRED[kind]:
                raise UserError(f"rope_scaling of type {kind!r} lacks {name}.")
            continue
        fields[name] = part = given[name]
        if name == "truncate":
            if type(part) is not bool:
                raise UserError(f"rope_scaling: {name} is {shown(part)}; expected true or false.")
        elif not is_number(part) or part <= 0:
            raise UserError(f"rope_scaling: {name} is {shown(part)}; expected a number > 0.")
    if kind == "yarn":
        fields.setdefault("attention_factor", _attention_factor(fields["factor"], given))
    if kind == "llama3" and fields["high_freq_factor"] <= fields["low_freq_factor"]:
        raise UserError("rope_scaling: expected high_freq_factor > low_freq_factor.")
    return RopeScaling(kind, **fields)


def _attention_factor(factor: float, given: Mapping[str, Any]) -> float:
    scales = [given.get(name) or 0 for name in ("mscale", "mscale_all_dim")]
    if not all(map(is_number, scales)):
        raise UserError(f"rope_scaling: mscale is {shown(scales)}; expected numbers.")
    if not all(scales):
        return yarn_attention_factor(factor)
    return yarn_attention_factor(factor, scales[0]) / yarn_attention_factor(factor, scales[1])


def yarn_attention_factor(factor: float, scale: float = 1.0) -> float:
    """Returns YaRN's factor of queries and keys for a scaling of the context by `factor`."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """Returns [H / 2] float32, each dimension pair's rotation per position, in radians."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    plain = 1.0 / theta**exponents
    return _SCALE[scaling.rope_type](plain, theta, scaling).astype(np.float32)


def _llama3(plain: np.ndarray, theta: float, scaling: RopeScaling) -> np.ndarray:
    wavelength = 2 * np.pi / plain
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # 0 for fully scaled wavelengths, 1 for unscaled ones.
    smooth = (scaling.original_max_position_embeddings / wavelength - low) / (high - low)
    smooth = np.clip(smooth, 0, 1)
    return (1 - smooth) * plain / scaling.factor + smooth * plain


def _yarn(plain: np.ndarray, theta: float, scaling: RopeScaling) -> np.ndarray:
    head_dim = 2 * len(plain)

    def dimension(rotations: float) -> float:
        """Returns the pair that makes so many rotations in the original context."""
        turns = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high = high if high != low else high + 0.001
    # 0 for unscaled dimensions, 1 for fully scaled ones.
    ramp = np.clip((np.arange(len(plain)) - low) / (high - low), 0, 1)
    return ramp * plain / scaling.factor + (1 - ramp) * plain


_SCALE = {
    "default": lambda plain, theta, scaling: plain,
    "linear": lambda plain, theta, scaling: plain / scaling.factor,
    "llama3": _llama3,
    "yarn": _yarn,
}
