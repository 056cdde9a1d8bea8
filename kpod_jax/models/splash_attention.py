"""Flash attention on TPUs: the splash attention kernel of JAX, for causal self-attention.

It keeps no scores. What a query sees is given by segments: earlier positions of its own segment.

Letters: B batch, L length, N query heads, M key heads, H head width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec

from kpod_jax.parallel import sharding

MIN_LENGTH = 512  # Shorter rows have few scores, which XLA computes faster than a padded kernel.
_LANES = 128  # Lengths and head widths are padded to multiples of these.
_BLOCK = 512  # Queries and keys of a block; smaller where it does not divide the length.
_PADDING = -1  # Segment of padding.


def fits(query_BxLxNxH: jax.Array, key_BxKxMxH: jax.Array) -> bool:
    """Returns whether the kernel can compute this on the devices at hand."""
    length, heads = query_BxLxNxH.shape[1:3]
    keys, key_heads = key_BxKxMxH.shape[1:3]
    if sharding.platform() != "tpu" or length != keys or length < MIN_LENGTH:
        return False
    size = jax.sharding.get_abstract_mesh().shape.get("tensor", 1)
    return heads % size == 0 and key_heads % size == 0


def attend(
    query_BxLxNxH: jax.Array,
    key_BxLxMxH: jax.Array,
    value_BxLxMxH: jax.Array,
    segments_BxL: jax.Array,
    *,
    scale: float = 1.0,
    interpret: bool = False,
) -> jax.Array:
    """Computes causal self-attention within segments, as `layers.Attention` does up to rounding.

    Args:
      query_BxLxNxH: queries; like keys and values, of the compute dtype.
      key_BxLxMxH: keys; N / M query heads share one head.
      value_BxLxMxH: values, with heads shared like those of the keys.
      segments_BxL: int32, the segment of each position.
      scale: factor of the scores.
      interpret: whether to run the kernel as ordinary operations, on any device.

    Returns:
      [B, L, N, H].
    """
    rows, length, _, width = query_BxLxNxH.shape
    more = -length % _LANES
    arrays = query_BxLxNxH * scale, key_BxLxMxH, value_BxLxMxH
    padding = [(0, 0), (0, more), (0, 0), (0, -width % _LANES)]
    by_head = [jnp.swapaxes(jnp.pad(array, padding), 1, 2) for array in arrays]
    segments = jnp.pad(segments_BxL, [(0, 0), (0, more)], constant_values=_PADDING)
    compute = functools.partial(_attend, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        parts = mesh.shape["data"] * mesh.shape["fsdp"]
        batch = sharding.RULES["batch"] if rows % parts == 0 else None
        spec = PartitionSpec(batch, "tensor")
        compute: Any = jax.shard_map(
            compute,
            in_specs=(spec, spec, spec, PartitionSpec(batch)),
            out_specs=spec,
            check_vma=False,
        )
    result = compute(*by_head, segments)
    return jnp.swapaxes(result, 1, 2)[:, :length, :, :width]


def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, *, interpret: bool
) -> jax.Array:
    """Computes [B, N, L, H] of one device's rows and heads, which have the kernel's sizes."""
    _, heads, length, _ = query.shape
    block = next(size for size in (_BLOCK, _BLOCK // 2, _LANES) if length % size == 0)
    names = (
        "block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv",
        "block_kv_dkv_compute", "block_q_dq", "block_kv_dq",
    )  # fmt: skip
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((length, length))] * heads),
        block_sizes=kernels.BlockSizes(**dict.fromkeys(names, block)),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    ids: Any = kernels.SegmentIds(segments, segments)
    return jax.vmap(kernel)(query, key, value, segment_ids=ids)  # pyright: ignore
