"""Parameter trees: flat paths, stacked and unrolled layers, adapters.

In paths, `layers_3` is one unrolled layer, and `layers` holds all layers stacked on the first axis.
"""

import functools
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from kpod_jax.models.layers import LoRAConfig


def flatten(params: Any) -> dict[str, Any]:
    """Returns the leaves by path, such as "encoder/layers_0/mlp/wi/kernel"."""
    return flax.traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: dict[str, Any]) -> Any:
    """Rebuilds the tree that `flatten` flattened."""
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def is_stacked(path: str) -> bool:
    """Returns whether a parameter holds all layers of a stack."""
    return "layers" in path.split("/")


def is_adapter(path: str) -> bool:
    """Returns whether a parameter belongs to a LoRA adapter."""
    return path.endswith(("/lora_a", "/lora_b"))


def combine(*parts: Any) -> Any:
    """Combines several parameter trees into one."""
    flat: dict[str, Any] = {}
    for part in parts:
        flat |= flatten(part)
    return unflatten(flat)


def split_adapters(params: Any) -> tuple[Any, Any]:
    """Splits parameters into adapters and all others; `combine` undoes it."""
    adapters, others = {}, {}
    for path, leaf in flatten(params).items():
        (adapters if is_adapter(path) else others)[path] = leaf
    return unflatten(adapters), unflatten(others)


def merge(params: Any, lora: LoRAConfig | None) -> Any:
    """Returns equivalent parameters for the module without adapters.

    Adapters are added to their kernels; int8 kernels become float32.
    """
    flat = flatten(params)
    result = {}
    for path, leaf in flat.items():
        if path.endswith("/kernel"):
            parts = {name: flat.get(companion_path(path, name)) for name in KERNEL_COMPANIONS}
            if is_stacked(path):
                merge_all = functools.partial(merge_kernel, lora=lora)
                leaf = jax.vmap(merge_all)(leaf, parts)
            else:
                leaf = merge_kernel(leaf, parts, lora)
        if not path.endswith(KERNEL_COMPANIONS):
            result[path] = leaf
    return unflatten(result)


# Parameters next to a kernel that `merge` folds into it.
KERNEL_COMPANIONS = ("kernel_scale", "lora_a", "lora_b")


def companion_path(path: str, name: str) -> str:
    """Returns the path of parameter `name` next to the kernel at `path`."""
    return path.removesuffix("kernel") + name


def merge_kernel(kernel: jax.Array, parts: dict[str, Any], lora: LoRAConfig | None) -> jax.Array:
    """Merges one layer's kernel.

    Args:
      kernel: [*inputs, *outputs].
      parts: for each name in `BESIDE_KERNEL`, the parameter or None.
      lora: adapters, or None.

    Returns:
      [*inputs, *outputs].
    """
    if parts["kernel_scale"] is not None:
        kernel = kernel * parts["kernel_scale"]
    if lora is None or parts["lora_a"] is None:
        return kernel
    return kernel + lora.scale * jnp.tensordot(parts["lora_a"], parts["lora_b"], 1)


def unroll(params: Any) -> Any:
    """Unrolls stacked layers for `scan_layers=False`; leaves other parameters as they are."""
    result = {}
    for path, value in flatten(params).items():
        if not is_stacked(path):
            result[path] = value
            continue
        for i in range(value.shape[0]):
            result[path.replace("layers/", f"layers_{i}/")] = value[i]
    return unflatten(result)
