"""Rotary positions: the scaling of their frequencies, as `config.json` gives it.

transformers 5 stores everything in `rope_parameters`; version 4 stores `rope_theta` and
`rope_scaling`, whose type was once named `type`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from kpod_jax.models.llama_traits import FULL, SLIDING
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
      original_max_position_embeddings: the original context length; not for "linear".
      beta_fast: "yarn" only: dimensions with more rotations in the original context are not scaled.
      beta_slow: "yarn" only: dimensions with fewer rotations are fully scaled.
      attention_factor: "yarn" and "longrope": multiplies queries and keys.
      truncate: "yarn" only: whether these two limits are rounded to whole dimensions.
      short_factor: "longrope" only: divisor of each frequency in the original context.
      long_factor: "longrope" only: that in longer ones, which are not supported.
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
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @property
    def max_length(self) -> int | None:
        """The longest sequence with these frequencies; None: any."""
        return self.original_max_position_embeddings if self.rope_type == "longrope" else None

    def check_size(self, dimensions: int) -> None:
        """Checks the number of factors for a number of rotated dimensions.

        Raises:
          UserError: it is wrong.
        """
        for name in _LISTS if self.rope_type == "longrope" else ():
            if len(getattr(self, name)) != dimensions // 2:
                raise UserError(
                    f"rope_scaling: {name} has {len(getattr(self, name))} numbers; expected "
                    f"{dimensions // 2}, half of the rotated dimensions of a head."
                )


def to_json(scaling: RopeScaling, theta: float, max_positions: int) -> dict[str, Any]:
    """Returns the keys of `config.json`, in the spelling of transformers 4 and 5.

    Args:
      scaling: scaling of the frequencies.
      theta: base of the frequencies.
      max_positions: the maximum sequence length.
    """
    kind = scaling.rope_type
    names = (*_REQUIRED[kind], *_OPTIONAL.get(kind, ()))
    found = {name: getattr(scaling, name) for name in names}
    original = scaling.original_max_position_embeddings
    if kind == "longrope":
        if found["attention_factor"] == longrope_attention_factor(max_positions, original):
            del found["attention_factor"]
        found |= {name: list(found[name]) for name in _LISTS}
    value: dict[str, Any] = {
        "rope_scaling": {"rope_type": kind} | found,
        "rope_parameters": {"rope_type": kind, "rope_theta": theta} | found,
    }
    if kind == "default":
        del value["rope_scaling"]
    elif kind == "longrope":  # Phi-3 in transformers 4 knows these names alone.
        value["rope_scaling"] = {"type": kind} | found
        value["original_max_position_embeddings"] = original
    return value


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
    "longrope": ("short_factor", "long_factor"),
}
_OPTIONAL = {
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "truncate"),
    "longrope": ("attention_factor",),
}
_LISTS = ("short_factor", "long_factor")
_ALIASES = {"su": "longrope"}  # Phi-3's first name of it.


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
    kind = _ALIASES[kind] if kind in tuple(_ALIASES) else kind
    check_type(kind)
    original = "original_max_position_embeddings"
    given = {key: part for key, part in rope.items() if part is not None}
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
        if name in _LISTS:
            if not isinstance(part, list) or not all(is_number(n) and n > 0 for n in part):
                raise UserError(f"rope_scaling: {name} is {shown(part)}; expected numbers > 0.")
            fields[name] = tuple(map(float, part))
        elif name == "truncate":
            if type(part) is not bool:
                raise UserError(f"rope_scaling: {name} is {shown(part)}; expected true or false.")
        elif not is_number(part) or part <= 0:
            raise UserError(f"rope_scaling: {name} is {shown(part)}; expected a number > 0.")
    if kind == "longrope":
        original_size = given[original]
        if type(original_size) is not int or original_size < 2:
            raise UserError(f"{original} is {shown(original_size)}; expected an integer >= 2.")
        fields[original] = original_size
        factor = given.get("factor")
        if not all(is_number(n) and n > 0 for n in (max_positions, factor or 1)):
            raise UserError(f"rope_scaling: factor is {shown(factor)}; expected a number > 0.")
        derived = longrope_attention_factor(max_positions, original_size, factor)
        fields.setdefault("attention_factor", derived)
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


def longrope_attention_factor(
    max_positions: int, original: int, factor: float | None = None
) -> float:
    """Returns LongRoPE's factor of queries and keys for a scaling of the context."""
    if factor is None:
        factor = max_positions / original
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def partial_factor(value: Mapping[str, Any], allowed: bool) -> float:
    """Returns the fraction of each head's dimensions that are rotated.

    Args:
      value: contents of a `config.json`.
      allowed: whether the model type may have a fraction below 1.

    Raises:
      UserError: it is no fraction, is given twice and differs, or is not allowed.
    """
    name = "partial_rotary_factor"
    places = [value, *(value[key] for key in _KEYS if isinstance(value.get(key), Mapping))]
    found = {place[name] for place in places if is_number(place.get(name))} or {1.0}
    factor = found.pop()
    if found or not 0 < factor <= 1 or (factor != 1 and not allowed):
        raise UserError(f"{name} is {factor}; expected {'one fraction' if allowed else 1}.")
    return float(factor)


def split_local(value: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """Separates the frequencies of sliding layers from a `config.json` of Gemma 3.

    Returns:
      The contents with the settings of the other layers alone, and the base of sliding layers.

    Raises:
      UserError: the frequencies of sliding layers are scaled, or their base is not a number > 0.
    """
    given, value = value.get("rope_parameters"), dict(value)
    base = value.pop("rope_local_base_freq", 10000.0)
    if isinstance(given, Mapping) and SLIDING in given:
        value["rope_parameters"] = given.get(FULL) or {}
        local = given[SLIDING] or {}
        if not isinstance(local, Mapping) or local.get("rope_type", "default") != "default":
            raise UserError(f"rope_parameters of {SLIDING} is {shown(local)}; expected no scaling.")
        base = local.get("rope_theta", base)
    if not is_number(base) or base <= 0:
        raise UserError(f"rope_local_base_freq is {shown(base)}; expected a number > 0.")
    return value, float(base)


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
    "longrope": lambda plain, theta, scaling: plain / np.asarray(scaling.short_factor),
}
