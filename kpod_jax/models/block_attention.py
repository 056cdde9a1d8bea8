"""Memory-efficient attention on a CPU: computes scores block by block and keeps none of them.

A block is a few queries of one head of one example, small enough for the processor's cache. With
causal masks, a block ends at the last key that any of its queries sees. The backward pass
recomputes the scores. The loop over heads and examples is not split across devices.

Letters: B batch, Q and K lengths of queries and keys, N query heads, M key heads, H head width.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kpod_jax.models.products import sum_products

MASKED_SCORE = -0.7 * float(jnp.finfo(jnp.float32).max)  # The score of a masked key.
MIN_LENGTH = 256  # Minimum number of queries and of keys to be faster (`benchmarks/RESULTS.md`).
_MAX_BLOCKS, _MIN_BLOCK_QUERIES = 4, 64


class _Settings(NamedTuple):
    scale: float
    is_causal: bool


class _Block(NamedTuple):
    """Queries `first` to `end`, which see only the first `keys` keys."""

    first: int
    end: int
    keys: int


def attend(
    query_BxQxNxH: jax.Array,
    key_BxKxMxH: jax.Array,
    value_BxKxMxH: jax.Array,
    bias_1xNxQxK: jax.Array | None,
    mask: jax.Array | None,
    *,
    is_causal: bool = False,
    scale: float = 1.0,
) -> jax.Array:
    """Computes softmax attention, equal to `layers.Attention` up to rounding.

    A query that sees no key gets the mean of its block's values; XLA gives the mean of all values.

    Args:
      query_BxQxNxH: queries; like keys and values, of the compute dtype.
      key_BxKxMxH: keys; N / M query heads share one head.
      value_BxKxMxH: values, with heads shared like those of the keys.
      bias_1xNxQxK: added to the scores, or None; differentiable.
      mask: bool, True where a query sees a key; broadcasts to [B, N, Q, K].
      is_causal: query q sees only keys up to K - Q + q.
      scale: factor of the scores.

    Returns:
      [B, Q, N, H].
    """
    queries, keys = query_BxQxNxH.shape[1], key_BxKxMxH.shape[1]
    if is_causal:
        causal = jnp.tril(jnp.ones((queries, keys), bool), keys - queries)
        mask = causal if mask is None else mask & causal
    mask = jnp.ones((1, 1, 1, 1), bool) if mask is None else mask
    mask = jnp.expand_dims(mask, range(4 - mask.ndim))
    mask = jnp.broadcast_to(mask, (*mask.shape[:2], queries, keys))
    settings = _Settings(scale, is_causal)
    by_head = [jnp.moveaxis(array, 2, 0) for array in (query_BxQxNxH, key_BxKxMxH, value_BxKxMxH)]
    return jnp.moveaxis(_attend(settings, *by_head, bias_1xNxQxK, mask), 0, 2)  # pyright: ignore


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    settings: _Settings,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array,
) -> Any:
    """Attends with heads first.

    Args:
      settings: of the call.
      query: [N, B, Q, H].
      key: [M, B, K, H].
      value: [M, B, K, H].
      bias: [1, N, Q, K], or None.
      mask: [1 or B, 1 or N, Q, K].

    Returns:
      [N, B, Q, H].
    """
    return _forward(settings, query, key, value, bias, mask)[0]


def _forward(settings: _Settings, *arrays: Any) -> Any:
    """Keeps each query's maximum score and the inverse of its softmax sum for the backward pass."""
    query, key, value, _, _ = arrays
    heads, rows = query.shape[:2]
    blocks = _split_queries(settings, query.shape[2], key.shape[2])

    def attend_head(index: jax.Array) -> Any:
        q_QxH, k_KxH, v_KxH, bias_QxK, mask_QxK = _select(arrays, index // rows, index % rows)
        parts = []
        for block in blocks:
            scores = _scores(settings, block, q_QxH, k_KxH, bias_QxK, mask_QxK)
            max_score = scores.max(-1, keepdims=True)
            exps = jnp.exp(scores - max_score)
            inverse_sum = 1 / exps.sum(-1, keepdims=True)
            result = _einsum("qk,kh->qh", exps.astype(value.dtype), v_KxH[: block.keys])
            parts.append(((result * inverse_sum).astype(query.dtype), max_score, inverse_sum))
        return tuple(map(jnp.concatenate, zip(*parts, strict=True)))

    outputs = jax.lax.map(attend_head, jnp.arange(heads * rows))
    result, max_score, inverse_sum = (
        output.reshape(heads, rows, *output.shape[1:]) for output in outputs
    )
    return result, (*arrays, result, max_score, inverse_sum)


def _backward(settings: _Settings, residuals: Any, grad: jax.Array) -> Any:
    *arrays, result, max_score, inverse_sum = residuals
    query, key, value, bias, _ = arrays
    heads, rows, group = *query.shape[:2], len(query) // len(key)
    blocks = _split_queries(settings, query.shape[2], key.shape[2])

    def backward_example(bias_sums: Any, index: jax.Array) -> Any:
        """Adds to the bias gradient in `bias_sums`, which has one array per block."""
        n, b = index // rows, index % rows
        q_QxH, k_KxH, v_KxH, bias_QxK, mask_QxK = _select(arrays, n, b)
        grad_QxH, max_Qx1, inverse_Qx1 = grad[n, b], max_score[n, b], inverse_sum[n, b]
        mean = jnp.sum(grad_QxH.astype(jnp.float32) * result[n, b], -1, keepdims=True)
        grad_query, grad_key = [], jnp.zeros(k_KxH.shape, jnp.float32)
        grad_value, grad_bias = jnp.zeros(v_KxH.shape, jnp.float32), []
        for block, bias_sum in zip(blocks, bias_sums, strict=True):
            queries, keys = slice(block.first, block.end), slice(block.keys)
            scores = _scores(settings, block, q_QxH, k_KxH, bias_QxK, mask_QxK)
            weights = jnp.exp(scores - max_Qx1[queries]) * inverse_Qx1[queries]
            grad_weights = _einsum("qh,kh->qk", grad_QxH[queries], v_KxH[keys])
            grad_scores = weights * (grad_weights - mean[queries])
            grad_scores = jnp.where(mask_QxK[queries, keys], grad_scores, 0.0)
            grad_bias.append(bias_sum if bias is None else bias_sum + grad_scores)
            grad_products = (settings.scale * grad_scores).astype(query.dtype)
            grad_query.append(_einsum("qk,kh->qh", grad_products, k_KxH[keys]).astype(query.dtype))
            update = sum_products(grad_products, q_QxH[queries], 1)
            grad_key = grad_key.at[keys].add(update)
            update = sum_products(weights.astype(value.dtype), grad_QxH[queries], 1)
            grad_value = grad_value.at[keys].add(update)
        return grad_bias, (jnp.concatenate(grad_query), grad_key, grad_value)

    def backward_head(n: jax.Array) -> Any:
        # Without a bias, the sums are empty.
        widths = [0 if bias is None else block.keys for block in blocks]
        lengths = [block.end - block.first for block in blocks]
        zeros = [jnp.zeros(shape) for shape in zip(lengths, widths, strict=True)]
        grad_bias, others = jax.lax.scan(backward_example, zeros, n * rows + jnp.arange(rows))
        padding = [[(0, 0), (0, max(widths) - width)] for width in widths]
        return jnp.concatenate(list(map(jnp.pad, grad_bias, padding))), others

    grad_bias, (grad_query, *others) = jax.lax.map(backward_head, jnp.arange(heads))
    grad_key, grad_value = (
        part.reshape(-1, group, *part.shape[1:]).sum(1).astype(key.dtype) for part in others
    )
    grad_bias = None if bias is None else grad_bias[None].astype(bias.dtype)
    return grad_query, grad_key, grad_value, grad_bias, None


_attend.defvjp(_forward, _backward)


def _split_queries(settings: _Settings, queries: int, keys: int) -> Sequence[_Block]:
    size = max(_MIN_BLOCK_QUERIES, -(-queries // _MAX_BLOCKS))
    ends = [min(first + size, queries) for first in range(0, queries, size)]
    return [
        _Block(i * size, end, keys - queries + end if settings.is_causal else keys)
        for i, end in enumerate(ends)
    ]


def _scores(
    settings: _Settings,
    block: _Block,
    q_QxH: jax.Array,
    k_KxH: jax.Array,
    bias_QxK: jax.Array | None,
    mask_QxK: jax.Array,
) -> jax.Array:
    """Returns the float32 scores of a block."""
    queries, keys = slice(block.first, block.end), slice(block.keys)
    scores = settings.scale * _einsum("qh,kh->qk", q_QxH[queries], k_KxH[keys])
    scores = scores if bias_QxK is None else scores + bias_QxK[queries, keys]
    return jnp.where(mask_QxK[queries, keys], scores, MASKED_SCORE)


def _einsum(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32)


def _select(arrays: Sequence[Any], n: jax.Array, b: jax.Array) -> Sequence[Any]:
    """Returns `_attend`'s arrays for query head n of example b: [Q, H], 2 x [K, H], 2 x [Q, K]."""
    query, key, value, bias, mask = arrays
    key_head = n // (len(query) // len(key))
    bias_QxK = None if bias is None else bias[0, n]
    mask_QxK = mask[b if mask.shape[0] > 1 else 0, n if mask.shape[1] > 1 else 0]
    return query[n, b], key[key_head, b], value[key_head, b], bias_QxK, mask_QxK
