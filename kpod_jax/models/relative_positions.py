"""T5's relative position bias: buckets of distances, with one bias per bucket and head.

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
    """Returns the bias [1, N, Q, K] that T5 adds to its attention scores.

    The bias depends only on key position minus query position, so each row is the previous row
    shifted by one. Repeating a row of Q + K distances and reading the result as rows that are one
    entry shorter gives exactly this, without a gather of Q x K entries or a scatter in the
    backward pass.
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
    """Returns the bucket of each distance, key position minus query position.

    Near distances get one bucket each and use half of the buckets; farther distances share the
    other half, spaced logarithmically. If `bidirectional`, keys before and after the query use
    separate halves of all buckets; otherwise keys after the query count as distance 0.
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
