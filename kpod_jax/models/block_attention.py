"""Attention on a CPU, a block of scores at a time: never are all of them held, nor any kept.

A block is a few queries of one head of one example, small enough for a processor's cache; where
queries see no later keys, blocks end at the last key that one of theirs sees. The backward pass
makes the scores again. The loop over heads and examples is not split over devices.

Letters: B batch, Q and K lengths of queries and keys, N heads, M heads of keys, H width of a head.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)  # The score of a key that is not seen.
WORTH_WHILE = 256  # Queries and keys, from which on it is faster (`benchmarks/RESULTS.md`).
_BLOCKS, _LEAST = 4, 64  # Of the queries at most, and queries of a block at least.


class _Settings(NamedTuple):
    scale: float
    is_causal: bool


class _Block(NamedTuple):
    """Queries `first` to `end`, which see none but the first `keys` keys."""

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
    """Softmax attention as that of `layers.attend`, up to rounding.

    A query that sees no key gets the mean of its block's values, XLA's that of all values.

    Args:
      query_BxQxNxH: of the compute type, as are key and value.
      key_BxKxMxH: N / M heads of queries share one.
      value_BxKxMxH: likewise.
      bias_1xNxQxK: added to the scores, or None; has a gradient.
      mask: bool, True where a key is seen; broadcasts to [B, N, Q, K].
      is_causal: query q sees keys up to K - Q + q alone.
      scale: of the scores.

    Returns:
      [B, Q, N, H].
    """
    queries, keys = query_BxQxNxH.shape[1], key_BxKxMxH.shape[1]
    if is_causal:
        seen = jnp.tril(jnp.ones((queries, keys), bool), keys - queries)
        mask = seen if mask is None else mask & seen
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
    """[N, B, Q, H], twice [M, B, K, H], [1, N, Q, K], [1 or B, 1 or N, Q, K] -> [N, B, Q, H]."""
    return _forward(settings, query, key, value, bias, mask)[0]


def _forward(settings: _Settings, *arrays: Any) -> Any:
    """Keeps of the softmax each query's highest score and 1 / its sum."""
    query, key, value, _, _ = arrays
    heads, rows = query.shape[:2]
    blocks = _blocks(settings, query.shape[2], key.shape[2])

    def one(place: jax.Array) -> Any:
        of_query, of_key, of_value, of_bias, of_mask = _at(arrays, place // rows, place % rows)
        parts = []
        for block in blocks:
            scores = _scores(settings, block, of_query, of_key, of_bias, of_mask)
            highest = scores.max(-1, keepdims=True)
            powers = jnp.exp(scores - highest)
            factor = 1 / powers.sum(-1, keepdims=True)
            result = _product("qk,kh->qh", powers.astype(value.dtype), of_value[: block.keys])
            parts.append(((result * factor).astype(query.dtype), highest, factor))
        return tuple(map(jnp.concatenate, zip(*parts, strict=True)))

    found = jax.lax.map(one, jnp.arange(heads * rows))
    result, highest, factor = (part.reshape(heads, rows, *part.shape[1:]) for part in found)
    return result, (*arrays, result, highest, factor)


def _backward(settings: _Settings, kept: Any, slope: jax.Array) -> Any:
    *arrays, result, highest, factor = kept
    query, key, value, bias, _ = arrays
    heads, rows, share = *query.shape[:2], len(query) // len(key)
    blocks = _blocks(settings, query.shape[2], key.shape[2])

    def one(sums: Any, place: jax.Array) -> Any:
        """Adds to the bias's gradient in `sums`, a part for each block."""
        n, b = place // rows, place % rows
        of_query, of_key, of_value, of_bias, of_mask = _at(arrays, n, b)
        of_slope, of_highest, of_factor = slope[n, b], highest[n, b], factor[n, b]
        mean = jnp.sum(of_slope.astype(jnp.float32) * result[n, b], -1, keepdims=True)
        by_query, by_key = [], jnp.zeros(of_key.shape, jnp.float32)
        by_value, by_bias = jnp.zeros(of_value.shape, jnp.float32), []
        for block, before in zip(blocks, sums, strict=True):
            lines, keys = slice(block.first, block.end), slice(block.keys)
            scores = _scores(settings, block, of_query, of_key, of_bias, of_mask)
            weights = jnp.exp(scores - of_highest[lines]) * of_factor[lines]
            by_weights = _product("qh,kh->qk", of_slope[lines], of_value[keys])
            by_scores = weights * (by_weights - mean[lines])
            by_scores = jnp.where(of_mask[lines, keys], by_scores, 0.0)
            by_bias.append(before if bias is None else before + by_scores)
            by_products = (settings.scale * by_scores).astype(query.dtype)
            by_query.append(_product("qk,kh->qh", by_products, of_key[keys]).astype(query.dtype))
            more = _product("qk,qh->kh", by_products, of_query[lines])
            by_key = by_key.at[keys].add(more)
            more = _product("qk,qh->kh", weights.astype(value.dtype), of_slope[lines])
            by_value = by_value.at[keys].add(more)
        return by_bias, (jnp.concatenate(by_query), by_key, by_value)

    def head(n: jax.Array) -> Any:
        # Of a bias that is not given, sums of nothing.
        wide = [0 if bias is None else block.keys for block in blocks]
        lines = [block.end - block.first for block in blocks]
        zeros = [jnp.zeros(shape) for shape in zip(lines, wide, strict=True)]
        by_bias, rest = jax.lax.scan(one, zeros, n * rows + jnp.arange(rows))
        right = [[(0, 0), (0, max(wide) - keys)] for keys in wide]
        return jnp.concatenate(list(map(jnp.pad, by_bias, right))), rest

    by_bias, (by_query, *others) = jax.lax.map(head, jnp.arange(heads))
    by_key, by_value = (
        part.reshape(-1, share, *part.shape[1:]).sum(1).astype(key.dtype) for part in others
    )
    by_bias = None if bias is None else by_bias[None].astype(bias.dtype)
    return by_query, by_key, by_value, by_bias, None


_attend.defvjp(_forward, _backward)


def _blocks(settings: _Settings, queries: int, keys: int) -> Sequence[_Block]:
    size = max(_LEAST, -(-queries // _BLOCKS))
    ends = [min(first + size, queries) for first in range(0, queries, size)]
    return [
        _Block(i * size, end, keys - queries + end if settings.is_causal else keys)
        for i, end in enumerate(ends)
    ]


def _scores(
    settings: _Settings,
    block: _Block,
    query: jax.Array,
    key: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array,
) -> jax.Array:
    """A block's, float32, of one head of one example."""
    lines, keys = slice(block.first, block.end), slice(block.keys)
    scores = settings.scale * _product("qh,kh->qk", query[lines], key[keys])
    scores = scores if bias is None else scores + bias[lines, keys]
    return jnp.where(mask[lines, keys], scores, HIDDEN)


def _product(formula: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(formula, a, b, preferred_element_type=jnp.float32)


def _at(arrays: Sequence[Any], n: jax.Array, b: jax.Array) -> Sequence[Any]:
    """Of `_attend`'s arrays those of a head of an example: [Q, H], twice [K, H], twice [Q, K]."""
    query, key, value, bias, mask = arrays
    shared = n // (len(query) // len(key))
    of_bias = None if bias is None else bias[0, n]
    of_mask = mask[b if mask.shape[0] > 1 else 0, n if mask.shape[1] > 1 else 0]
    return query[n, b], key[shared, b], value[shared, b], of_bias, of_mask
