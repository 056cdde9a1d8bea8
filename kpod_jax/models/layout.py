"""Parameter trees: flat paths, layers stacked or written out, adapters.

In paths, `layers_3` is a layer written out and `layers` all of them stacked on the first axis.
"""

import re
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp


def flatten(params: Any) -> dict[str, Any]:
    """Leaves by path, as in "encoder/layers_0/mlp/wi/kernel"."""
    return flax.traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: dict[str, Any]) -> Any:
    """Inverse of `flatten`."""
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def is_stacked(path: str) -> bool:
    """Whether a parameter holds all layers of a stack."""
    return "/layers/" in path


def is_adapter(path: str) -> bool:
    """Whether a parameter is LoRA's."""
    return path.endswith(("/lora_a", "/lora_b"))


def stack(params: Any) -> Any:
    """Layers written out -> stacked, for `scan_layers=True`; what is stacked stays as it is."""
    result: dict[str, Any] = {}
    layers: dict[str, dict[int, jax.Array]] = {}
    for path, value in flatten(params).items():
        match = re.search(r"/layers_(\d+)/", path)
        if match is None:
            result[path] = value
        else:
            layers.setdefault(path.replace(match[0], "/layers/"), {})[int(match[1])] = value
    for path, found in layers.items():
        result[path] = jnp.stack([found[i] for i in range(len(found))])
    return unflatten(result)


def unroll(params: Any) -> Any:
    """Stacked layers -> written out, for `scan_layers=False`; others stay as they are."""
    result = {}
    for path, value in flatten(params).items():
        if not is_stacked(path):
            result[path] = value
            continue
        for i in range(value.shape[0]):
            result[path.replace("/layers/", f"/layers_{i}/")] = value[i]
    return unflatten(result)
