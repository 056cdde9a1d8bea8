"""T5's relative position bias: buckets of distances, and one bias a bucket and head.

Letters: N heads, Q and K lengths of queries and keys, P distances, E buckets.
"""

import jax
import jax.numpy as jnp
import numpy as np


def relative_bias(
    table_ExN: jax.Array,
    query_length: int,
    key_length: int,
    *,
    bidirectional: bool,
    max_distance: int,
) -> jax.Array:
    """[1, N, Q, K], what T5 adds to its attention scores.

    The bias depends on key position minus query position alone, so each row is the row before it,
    moved by one. Rows of Q + K distances, read as rows of one entry less, are exactly that: no
    gather of Q x K entries, and no scatter in the backward pass.
    """
    span = query_length + key_length
    distance = np.arange(span)
    distance[key_length:] -= span
    bucket_P = buckets(distance, table_ExN.shape[0], bidirectional, max_distance)
    bias_NxP = table_ExN[bucket_P].T
    rows = jnp.broadcast_to(bias_NxP[:, None], (bias_NxP.shape[0], query_length, span))
    rows = rows.reshape(-1, query_length * span)[:, : query_length * (span - 1)]
    return rows.reshape(-1, query_length, span - 1)[None, :, :, :key_length]


def buckets(
    distance: np.ndarray, num_buckets: int, bidirectional: bool, max_distance: int
) -> np.ndarray:
    """The bucket of each distance, key position minus query position.

    Near distances have a bucket each, half of all; further ones share, logarithmically. Behind the
    query and, if `bidirectional`, ahead of it; otherwise what is ahead counts as distance 0.
    """
    if bidirectional:
        num_buckets //= 2
        first, distance = np.where(distance > 0, num_buckets, 0), np.abs(distance)
    else:
        first, distance = 0, np.maximum(-distance, 0)
    near = num_buckets // 2
    ratio = np.maximum(distance, near).astype(np.float32) / np.float32(near)
    scale = np.float32(np.log(max_distance / near))
    far = near + (np.log(ratio) / scale * np.float32(num_buckets - near)).astype(np.int64)
    return first + np.where(distance < near, distance, np.minimum(far, num_buckets - 1))
