"""Matrix products in a chosen type, and where their sums are float32.

Letters: D inputs, V outputs, each one dimension or more.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero

from kpod_jax.parallel.sharding import platform

PROJECTION = "projection"  # Names results to `jax.checkpoint`, which sees no product in them.
Dtype = Any


def project(x: jax.Array, kernel_DxV: jax.Array, inputs: int, dtype: Dtype) -> jax.Array:
    """[..., D] -> [..., V] of `dtype`: x times the kernel, whose first `inputs` dimensions are D.

    On TPUs and GPUs products of bfloat16 are rounded where they are made, which halves what tensor
    parallelism and gradients send. XLA's CPU backend multiplies bfloat16 fast only where sums come
    out in float32; it turns a kernel of three dimensions before it multiplies by it backwards; and
    the gradient that JAX would ask for lies the other way than the kernel, which the optimiser
    pays for (`benchmarks/RESULTS.md`).
    """
    if platform() == "cpu":
        rows, outputs = x.shape[: x.ndim - inputs], kernel_DxV.shape[inputs:]
        size = math.prod(kernel_DxV.shape[:inputs])
        flat_x, flat_kernel = x.reshape(*rows, size), kernel_DxV.reshape(size, -1)
        result = float32_sums(flat_x, flat_kernel, (0,), dtype).astype(dtype)
        return checkpoint_name(result, PROJECTION).reshape(*rows, *outputs)
    return jnp.tensordot(x.astype(dtype), kernel_DxV.astype(dtype), inputs)


def float32_sums(x: jax.Array, kernel: jax.Array, inputs: Sequence[int], dtype: Dtype) -> jax.Array:
    """[..., D] -> [..., V] float32: factors in `dtype`, sums in float32, forward and backward.

    Args:
      x: [..., D].
      kernel: [D, V] or [V, D].
      inputs: the kernel's first or last dimensions, D, as `range` gives them.
      dtype: of the factors.
    """
    return _float32_sums(x, kernel, inputs, dtype)  # pyright: ignore[reportReturnType]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _float32_sums(x: jax.Array, kernel: jax.Array, inputs: Sequence[int], dtype: Dtype) -> Any:
    ours = tuple(range(x.ndim - len(inputs), x.ndim))
    return _sums(x.astype(dtype), kernel.astype(dtype), ours, inputs)


def _forward(x: Any, kernel: Any, inputs: Sequence[int], dtype: Dtype) -> Any:
    """Keeps what the backward pass needs: a factor where the other one has a gradient."""
    kept = (x.value if kernel.perturbed else None, kernel.value if x.perturbed else None)
    types = jnp.zeros(0, x.value.dtype), jnp.zeros(0, kernel.value.dtype)
    return _float32_sums(x.value, kernel.value, inputs, dtype), (*kept, *types)


def _backward(inputs: Sequence[int], dtype: Dtype, kept: Any, slope: jax.Array) -> Any:
    """Left to itself, JAX would multiply float32 by bfloat16, which no device does fast."""
    x, kernel, of_x, of_kernel = kept
    if isinstance(slope, SymbolicZero):
        return None, None
    slope, by_x, by_kernel = slope.astype(dtype), None, None
    if kernel is not None:
        outputs = tuple(axis for axis in range(kernel.ndim) if axis not in inputs)
        theirs = tuple(range(slope.ndim - len(outputs), slope.ndim))
        by_x = _sums(slope, kernel.astype(dtype), theirs, outputs).astype(of_x.dtype)
    if x is not None:
        rows, x = tuple(range(x.ndim - len(inputs))), x.astype(dtype)
        if inputs[0] == 0:
            by_kernel = _sums(x, slope, rows, rows)
        elif jnp.dtype(dtype) == jnp.bfloat16:
            by_kernel = _sums(slope, x, rows, rows)  # XLA's CPU backend cannot turn it round.
        else:
            by_kernel = _turned(_sums(x, slope, rows, rows), len(inputs))  # Takes less memory.
        by_kernel = by_kernel.astype(of_kernel.dtype)
    return by_x, by_kernel


_float32_sums.defvjp(_forward, _backward, symbolic_zeros=True)


def _sums(a: jax.Array, b: jax.Array, over_a: Sequence[int], over_b: Sequence[int]) -> jax.Array:
    return jnp.tensordot(a, b, (over_a, over_b), preferred_element_type=jnp.float32)


def _turned(array: jax.Array, count: int) -> jax.Array:
    """The first `count` dimensions after the others."""
    return jnp.transpose(array, (*range(count, array.ndim), *range(count)))
