"""Matrix products in a given dtype, optionally with float32 sums.

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
from jax.experimental.layout import Layout, with_layout_constraint

from kpod_jax.parallel.sharding import platform

# Marks results for `jax.checkpoint` policies, which do not see the products in a `custom_vjp`.
PROJECTION = "projection"
Dtype = Any


def project(x: jax.Array, kernel_DxV: jax.Array, inputs: int, dtype: Dtype) -> jax.Array:
    """Multiplies x [..., D] by the kernel, whose first `inputs` dimensions are D.

    On TPUs and GPUs, bfloat16 products are rounded before they leave the device, which halves the
    traffic of tensor parallelism and of gradients. The CPU takes another path: XLA's CPU backend
    multiplies bfloat16 fast only with float32 sums; it transposes 3D kernels before multiplying
    by them in the backward pass; and JAX's default gradient has the transposed layout of the
    kernel, which slows down the optimizer (`benchmarks/RESULTS.md`).

    Returns:
      [..., V] of `dtype`.
    """
    if platform() == "cpu":
        rows, outputs = x.shape[: x.ndim - inputs], kernel_DxV.shape[inputs:]
        size = math.prod(kernel_DxV.shape[:inputs])
        flat_x, flat_kernel = x.reshape(*rows, size), kernel_DxV.reshape(size, -1)
        result = float32_sums(flat_x, flat_kernel, (0,), dtype).astype(dtype)
        return checkpoint_name(result, PROJECTION).reshape(*rows, *outputs)
    return jnp.tensordot(x.astype(dtype), kernel_DxV.astype(dtype), inputs)


def float32_sums(x: jax.Array, kernel: jax.Array, inputs: Sequence[int], dtype: Dtype) -> jax.Array:
    """Multiplies with factors of `dtype` and float32 sums, in both the forward and backward pass.

    Args:
      x: [..., D].
      kernel: [D, V] or [V, D].
      inputs: indices of the kernel's D dimensions, its first or last ones, ascending.
      dtype: of the factors.

    Returns:
      [..., V] float32.
    """
    return _float32_sums(x, kernel, inputs, dtype)  # pyright: ignore[reportReturnType]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _float32_sums(x: jax.Array, kernel: jax.Array, inputs: Sequence[int], dtype: Dtype) -> Any:
    x_axes = tuple(range(x.ndim - len(inputs), x.ndim))
    return _contract(x.astype(dtype), kernel.astype(dtype), x_axes, inputs)


def _forward(x: Any, kernel: Any, inputs: Sequence[int], dtype: Dtype) -> Any:
    """Saves a factor for the backward pass only if the other factor needs a gradient."""
    factors = (x.value if kernel.perturbed else None, kernel.value if x.perturbed else None)
    dtypes = jnp.zeros(0, x.value.dtype), jnp.zeros(0, kernel.value.dtype)
    return _float32_sums(x.value, kernel.value, inputs, dtype), (*factors, *dtypes)


def _backward(inputs: Sequence[int], dtype: Dtype, residuals: Any, grad: jax.Array) -> Any:
    """Casts the gradient to `dtype`; JAX would multiply float32 by bfloat16, slow everywhere."""
    x, kernel, like_x, like_kernel = residuals
    if isinstance(grad, SymbolicZero):
        return None, None
    grad, grad_x, grad_kernel = grad.astype(dtype), None, None
    if kernel is not None:
        outputs = tuple(axis for axis in range(kernel.ndim) if axis not in inputs)
        grad_axes = tuple(range(grad.ndim - len(outputs), grad.ndim))
        grad_x = _contract(grad, kernel.astype(dtype), grad_axes, outputs).astype(like_x.dtype)
    if x is not None:
        rows, x = x.ndim - len(inputs), x.astype(dtype)
        if inputs[0] == 0:
            grad_kernel = sum_products(x, grad, rows)
        elif jnp.dtype(dtype) == jnp.bfloat16:
            grad_kernel = sum_products(grad, x, rows)  # XLA's CPU backend cannot transpose it.
        else:  # Takes less memory.
            grad_kernel = _move_last(sum_products(x, grad, rows), len(inputs))
        grad_kernel = grad_kernel.astype(like_kernel.dtype)
    return grad_x, grad_kernel


_float32_sums.defvjp(_forward, _backward, symbolic_zeros=True)


def sum_products(a: jax.Array, b: jax.Array, rows: int) -> jax.Array:
    """Sums the products of a [R, M] and b [R, N] over R, their first `rows` dimensions.

    Returns:
      [M, N] float32.
    """
    axes = tuple(range(rows))
    if a.dtype != jnp.bfloat16 or platform() != "cpu":
        return _contract(a, b, axes, axes)
    # XLA's CPU backend multiplies bfloat16 several times as fast once R is last in memory.
    size = math.prod(a.shape[:rows])
    transposed = jnp.swapaxes(a.reshape(size, -1), 0, 1)
    transposed = with_layout_constraint(transposed, Layout(major_to_minor=(0, 1)))
    result = _contract(transposed, b.reshape(size, -1), (1,), (0,))
    return result.reshape(*a.shape[rows:], *b.shape[rows:])


def _contract(
    a: jax.Array, b: jax.Array, a_axes: Sequence[int], b_axes: Sequence[int]
) -> jax.Array:
    return jnp.tensordot(a, b, (a_axes, b_axes), preferred_element_type=jnp.float32)


def _move_last(array: jax.Array, count: int) -> jax.Array:
    """Moves the first `count` dimensions behind the others."""
    return jnp.transpose(array, (*range(count, array.ndim), *range(count)))
