"""Which layers have a sliding window and rotary positions, as transformers reads `config.json`."""

from collections.abc import Mapping
from typing import Any

from kpod_jax.models import config_values
from kpod_jax.models.llama_traits import FULL, SLIDING
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.schema import shown

_QWEN = ("qwen2", "qwen3")


def from_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields sliding_window, layer_types and no_rope_layers of a `LlamaConfig`.

    Args:
      value: contents of a `config.json`, with its model type's defaults.

    Raises:
      UserError: a value is of another type, or layers have a window whose size is not given.
    """
    kind, window, count = value["model_type"], value.get("sliding_window"), _count(value)
    ropes: tuple[Any, ...] = ()
    if kind == "smollm3":
        interval = _integer(value, "no_rope_layer_interval", 4)
        ropes = tuple(int((i + 1) % interval != 0) for i in range(count))
        given = _items(value, "no_rope_layers")
        _check_length("no_rope_layers", given[:count], count)
        ropes = given[:count] or ropes
    if kind in ("llama", "olmo2") or (
        kind in (*_QWEN, "smollm3") and not value.get("use_sliding_window")
    ):
        window = None
    types = _items(value, "layer_types") if kind in (*_QWEN, "smollm3", "gemma3_text") else ()
    if any(one not in (FULL, SLIDING) for one in types):
        raise UserError(f"layer_types is {shown(list(types))}; expected {FULL} or {SLIDING} only.")
    _check_length("layer_types", types, count)
    if not types:
        slides = [window is not None] * count
        if kind in _QWEN:
            first = _integer(value, "max_window_layers", 28, minimum=0)
            slides = [window is not None and i >= first for i in range(count)]
        elif kind == "smollm3":
            slides = [window is not None and not rotates for rotates in ropes]
        elif kind == "gemma3_text":
            pattern = _integer(value, "sliding_window_pattern", 6)
            slides = [window is not None and (i + 1) % pattern != 0 for i in range(count)]
        types = tuple(SLIDING if one else FULL for one in slides)
    if SLIDING not in types:
        window = None
    elif window is None:
        raise UserError(
            f"layer_types has {SLIDING}, but there is no sliding window (sliding_window, "
            "use_sliding_window)."
        )
    return {
        "sliding_window": window,
        "layer_types": () if len(set(types)) == 1 else types,
        "no_rope_layers": () if all(one == 1 for one in ropes) else ropes,
    }


def to_json(config: Any) -> dict[str, Any]:
    """Returns the keys of a `LlamaConfig`'s layers in `config.json`, for transformers 4 and 5."""
    kind, count, value = config.model_type, config.num_hidden_layers, {}
    slides = config.sliding_window is not None
    if kind in _QWEN:
        value = {"use_sliding_window": slides, "max_window_layers": 0 if slides else count}
    if config.layer_types or kind in ("smollm3", "gemma3_text"):
        types = config.layer_types or (SLIDING if slides else FULL,) * count
        value["layer_types"] = list(types)
    if kind == "smollm3":
        value["use_sliding_window"] = slides
        value["no_rope_layers"] = list(config.no_rope_layers or (1,) * count)
    return value


def check(config: Any) -> None:
    """Checks these fields of a `LlamaConfig`.

    Raises:
      UserError: their lengths or values are wrong.
    """
    for name, allowed in (("layer_types", (FULL, SLIDING)), ("no_rope_layers", (0, 1))):
        given, count = getattr(config, name), config.num_hidden_layers
        if given and (len(given) != count or any(one not in allowed for one in given)):
            raise UserError(
                f"LLaMA configuration: {name} is {shown(list(given))}; expected {count} values of "
                f"{allowed[0]} or {allowed[1]}, one for each layer."
            )


def _check_length(name: str, items: tuple[Any, ...], count: int) -> None:
    if items and len(items) != count:
        raise UserError(f"{name} has {len(items)} values; expected {count}, one for each layer.")


def _count(value: Mapping[str, Any]) -> int:
    """Returns the number of layers, or 1 if the value is not one, which is reported elsewhere."""
    count = value.get("num_hidden_layers", 32)
    return count if type(count) is int and 0 < count <= config_values.MAX_LAYERS else 1


def _integer(value: Mapping[str, Any], key: str, default: int, minimum: int = 1) -> int:
    given = value.get(key, default)
    given = default if given is None else given
    if type(given) is not int or given < minimum:
        raise UserError(f"{key} is {shown(given)}; expected an integer >= {minimum}.")
    return given


def _items(value: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    given = value.get(key)
    if given is not None and not isinstance(given, list):
        raise UserError(f"{key} is {shown(given)}; expected a list.")
    return tuple(given or ())
