"""What students of every family are made of: projections with LoRA, norm, embedding, attention.

Letters: B batch, Q and K lengths of queries and keys, N heads, H width of a head, D width of the
model, R rank.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.backend import get_backend

from kpod_jax.models import block_attention
from kpod_jax.models.products import PROJECTION, float32_sums, project
from kpod_jax.parallel.sharding import constrain, on_one_cpu

Dtype = Any
DROPOUT = "dropout"  # The rng collection.
# What `remat` keeps of the forward pass.
POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(PROJECTION),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters inside the projections, beside base weights that are frozen.

    Attributes:
      rank: R, at least 1.
      alpha: an adapter's product is scaled by alpha / rank.
      dropout: on the adapters' input, in training.
      targets: names of the projections that get one.
      base_dtype: of the base weights, "float32", "bfloat16" or "int8". With int8 the kernels are
        integers with a scale for each output, and the rest is bfloat16. Adapters are float32.
    """

    rank: int
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q", "v")
    base_dtype: str = "float32"

    @property
    def scale(self) -> float:
        """What an adapter's product is multiplied by."""
        return self.alpha / self.rank


def partitioned(initializer: Callable[..., Any], *axes: str) -> Callable[..., Any]:
    """An initializer whose parameter carries the logical names of its axes."""
    return nn.with_logical_partitioning(initializer, axes)


class Projection(nn.Module):
    """x @ kernel over one or more dimensions, with a bias and a LoRA adapter where asked for.

    The parameters are `kernel` [*inputs, *outputs], perhaps `bias` [*outputs], with an int8 kernel
    `kernel_scale` [*outputs] that its sums are multiplied by, and, with an adapter, `lora_a`
    [*inputs, R] and `lora_b` [R, *outputs]. `lora_b` starts as zeros, so that an adapter changes
    nothing at first.

    Attributes:
      inputs: sizes of the last dimensions of x, which are summed over.
      outputs: sizes of the dimensions that take their place.
      axes: logical names, of the inputs first.
      std: of the kernel's normal initial values.
    """

    inputs: Sequence[int]
    outputs: Sequence[int]
    axes: Sequence[str]
    std: float
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    lora: LoRAConfig | None = None
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        """[..., *inputs] -> [..., *outputs] of `dtype`."""
        inputs, outputs, n = tuple(self.inputs), tuple(self.outputs), len(self.inputs)
        integers = self.lora is not None and self.lora.base_dtype == "int8"
        kernel_init = _integers if integers else nn.initializers.normal(self.std)
        kernel_dtype = jnp.int8 if integers else self.param_dtype
        kernel_init = partitioned(kernel_init, *self.axes)
        kernel = self.param("kernel", kernel_init, inputs + outputs, kernel_dtype)
        result = project(x, kernel, n, self.dtype)
        if integers:
            scale_init = nn.initializers.constant(self.std / _INTEGERS_STD)
            scale_init = partitioned(scale_init, *self.axes[n:])
            scale = self.param("kernel_scale", scale_init, outputs, jnp.float32)
            result *= scale.astype(self.dtype)
        if self.use_bias:
            bias_init = partitioned(nn.initializers.zeros, *self.axes[n:])
            bias = self.param("bias", bias_init, outputs, self.param_dtype)
            result += bias.astype(self.dtype)
        if self.lora is None or self.name not in self.lora.targets:
            return result
        rank = self.lora.rank
        bound = 1 / math.sqrt(math.prod(inputs))

        def uniform(key: jax.Array, shape: Sequence[int], dtype: Dtype) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        a_init = partitioned(uniform, *self.axes[:n], "lora")
        b_init = partitioned(nn.initializers.zeros, "lora", *self.axes[n:])
        lora_a = self.param("lora_a", a_init, (*inputs, rank), jnp.float32)
        lora_b = self.param("lora_b", b_init, (rank, *outputs), jnp.float32)
        x = dropout(self, x, self.lora.dropout, deterministic)
        low = project(x, lora_a, n, self.dtype)
        return result + self.lora.scale * project(low, lora_b, 1, self.dtype)


_INTEGERS_STD = (127**2 / 3) ** 0.5


def _integers(key: jax.Array, shape: Sequence[int], dtype: Dtype) -> jax.Array:
    """Initial values of an int8 kernel: uniform, of standard deviation `_INTEGERS_STD`."""
    return jax.random.randint(key, shape, -127, 128, dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * scale, computed in float32: without mean and bias."""

    size: int
    epsilon: float
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    axis: str = "embed"  # Logical name.

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D] of `dtype`."""
        ones = partitioned(nn.initializers.ones, self.axis)
        scale = self.param("scale", ones, (self.size,), self.param_dtype)
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(self.dtype)


class Embedding(nn.Module):
    """A table of token vectors; `attend` uses it as a head."""

    rows: int
    size: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    std: float = 1.0

    def setup(self) -> None:
        init = partitioned(nn.initializers.normal(self.std), "vocab", "embed")
        self.embedding = self.param("embedding", init, (self.rows, self.size), self.param_dtype)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """[...] int -> [..., D] of `dtype`; NaN for an id outside of the table."""
        vectors = jnp.take(self.embedding, ids, axis=0).astype(self.dtype)
        # As the table lies. Without this halfway house XLA copies all rows to every device where
        # a mesh has both `data` and `fsdp`.
        return constrain(vectors, "batch_lookup", *[None] * (ids.ndim - 1), "embed")

    def attend(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., V] float32, the products with every row."""
        return float32_sums(x, self.embedding, (1,), self.dtype)


class Head(nn.Module):
    """A head of its own: [..., D] of any floating type -> [..., V] float32.

    Attributes:
      size: D.
      rows: V.
      std: of its first values.
      dtype: of the product's factors.
      param_dtype: of the kernel [D, V].
    """

    size: int
    rows: int
    std: float
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        init = partitioned(nn.initializers.normal(self.std), "embed", "vocab")
        kernel = self.param("kernel", init, (self.size, self.rows), self.param_dtype)
        return float32_sums(hidden, kernel, (0,), self.dtype)


def dropout(module: nn.Module, x: jax.Array, rate: float, deterministic: bool) -> jax.Array:
    """Zeroes a share `rate` of x and scales up the rest, unless `deterministic`."""
    if deterministic or rate == 0.0:
        return x
    keep = jax.random.bernoulli(module.make_rng(DROPOUT), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def attend(
    query_BxQxNxH: jax.Array,
    key_BxKxNxH: jax.Array,
    value_BxKxNxH: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    *,
    is_causal: bool = False,
    causal_mask: bool = False,
    scale: float = 1.0,
    drop: Callable[[jax.Array], jax.Array] | None = None,
    implementation: str = "xla",
) -> jax.Array:
    """Attention, softmax in float32.

    Args:
      query_BxQxNxH: as are key and value, of the compute type.
      key_BxKxNxH: see there; may have fewer heads, each shared by queries of a group (not where
        `drop` is given).
      value_BxKxNxH: see there.
      bias: added to the scores; broadcasts to [B, N, Q, K].
      mask: bool, True where a key is seen; broadcasts to [B, N, Q, K].
      is_causal: query q sees keys 0 ... q alone.
      causal_mask: `mask` lets query q see keys up to K - Q + q alone, so that "blocks" may pass
        over the others.
      scale: of the scores; T5 has none.
      drop: applied to the attention weights, which are then made whole.
      implementation: "xla"; "cudnn", flash attention on a GPU where lengths are even; or "blocks",
        `block_attention` on one CPU device where lengths make it worth while. What these do not
        take is left to XLA.

    Returns:
      [B, Q, N, H].
    """
    lengths = query_BxQxNxH.shape[1], key_BxKxNxH.shape[1]
    if implementation == "blocks":
        long = min(lengths) >= block_attention.WORTH_WHILE
        of_all = bias is None or bias.shape[0] == 1  # Examples alike.
        if long and of_all and drop is None and on_one_cpu():
            return block_attention.attend(
                query_BxQxNxH,
                key_BxKxNxH,
                value_BxKxNxH,
                bias,
                mask,
                is_causal=is_causal or causal_mask,
                scale=scale,
            )
        implementation = "xla"
    if any(length % 2 for length in lengths):
        implementation = "xla"
    if implementation == "cudnn":
        # It takes a bias of its inputs' type, and masks with all queries written out.
        bias = None if bias is None else bias.astype(query_BxQxNxH.dtype)
        mask = None if mask is None else jnp.broadcast_to(mask, (*mask.shape[:2], *lengths))
    if drop is None:
        return jax.nn.dot_product_attention(  # pyright: ignore[reportCallIssue]
            query_BxQxNxH,
            key_BxKxNxH,
            value_BxKxNxH,
            bias,
            mask,
            scale=scale,
            is_causal=is_causal,
            implementation=implementation,  # pyright: ignore[reportArgumentType]
        )
    scores = scale * jnp.einsum(
        "BQNH,BKNH->BNQK", query_BxQxNxH, key_BxKxNxH, preferred_element_type=jnp.float32
    )
    scores = scores if bias is None else scores + bias
    if is_causal:
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        mask = seen if mask is None else mask & seen
    if mask is not None:
        scores = jnp.where(mask, scores, block_attention.HIDDEN)
    weights = drop(jax.nn.softmax(scores)).astype(value_BxKxNxH.dtype)
    return jnp.einsum("BNQK,BKNH->BQNH", weights, value_BxKxNxH)


def attend_cache(
    query_Bx1xNxH: jax.Array,
    key_BxMxKxH: jax.Array,
    value_BxMxKxH: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array,
    *,
    scale: float = 1.0,
) -> jax.Array:
    """Attention of a step of decoding; `attend` would turn the whole cache in every step.

    Args:
      query_Bx1xNxH: of the compute type.
      key_BxMxKxH: heads before positions; each is shared by N / M heads of queries.
      value_BxMxKxH: likewise.
      bias: added to the scores; broadcasts to [B, M, N / M, K].
      mask: bool, True where a key is seen; broadcasts likewise.
      scale: of the scores.

    Returns:
      [B, 1, N, H].
    """
    rows, heads, _, width = key_BxMxKxH.shape
    query = query_Bx1xNxH.reshape(rows, heads, -1, width)
    scores = scale * jnp.einsum(
        "BMGH,BMKH->BMGK", query, key_BxMxKxH, preferred_element_type=jnp.float32
    )
    scores = scores if bias is None else scores + bias
    scores = jnp.where(mask, scores, block_attention.HIDDEN)
    weights = jax.nn.softmax(scores).astype(value_BxMxKxH.dtype)
    result = jnp.einsum("BMGK,BMKH->BMGH", weights, value_BxMxKxH)
    return result.reshape(query_Bx1xNxH.shape)


def best_attention(dtype: Dtype, head: int) -> str:
    """`attend`'s implementation for what there is: devices, the compute type, heads of a width."""
    if flash_attention_fits(dtype, head):
        return "cudnn"
    return "blocks" if jax.default_backend() == "cpu" else "xla"


def flash_attention_fits(dtype: Dtype, head: int) -> bool:
    """Whether the devices have flash attention for heads of this width: NVIDIA's, from Ampere on.

    Args:
      dtype: of queries, keys and values.
      head: H.
    """
    backend = get_backend()
    if "cuda" not in backend.platform_version or float(backend.devices()[0].compute_capability) < 8:
        return False
    return jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) and head % 8 == 0 and head <= 128


def pin_residual(x_BxQxD: jax.Array) -> jax.Array:
    """Pins the stream between sublayers: rows split, width whole."""
    return constrain(x_BxQxD, "batch", "length", "embed_activation")


def pin_heads(x_BxQxNxH: jax.Array) -> jax.Array:
    """Pins queries, keys and values: rows and heads split."""
    return constrain(x_BxQxNxH, "batch", "length", "heads", "kv")
