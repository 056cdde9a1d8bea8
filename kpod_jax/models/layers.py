"""Layers shared by all model families: projections with LoRA, norm, embedding, head, attention.

Letters: B batch, Q and K lengths of queries and keys, N heads, M key heads, H head width, D model
width, V vocabulary, R rank.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.backend import get_backend

from kpod_jax.models import block_attention, splash_attention
from kpod_jax.models.products import PROJECTION, float32_sums, project
from kpod_jax.parallel.sharding import constrain, on_one_cpu

Dtype = Any
DROPOUT = "dropout"  # The RNG collection.
# What each value of `remat` saves during the forward pass.
POLICIES = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(PROJECTION),
    ),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters in the projections, with frozen base weights.

    Attributes:
      rank: R, at least 1.
      alpha: the adapters' output is multiplied by alpha / rank.
      dropout: dropout rate of the adapters' input in training.
      targets: names of the projections that get an adapter.
      base_dtype: dtype of the base weights: "float32", "bfloat16" or "int8". With int8, kernels
        are integers with one scale per output, and all other base weights are bfloat16. Adapters
        are float32.
    """

    rank: int
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q", "v")
    base_dtype: str = "float32"

    @property
    def scale(self) -> float:
        """The factor of the adapters' output, alpha / rank."""
        return self.alpha / self.rank


def partitioned(initializer: Callable[..., Any], *axes: str) -> Callable[..., Any]:
    """Returns the initializer with logical axis names attached to its parameter."""
    return nn.with_logical_partitioning(initializer, axes)


class Projection(nn.Module):
    """A linear layer over one or more dimensions, with an optional bias and LoRA adapter.

    Its parameters are `kernel` [*inputs, *outputs]; with a bias, `bias` [*outputs]; with an int8
    kernel, `kernel_scale` [*outputs], which multiplies the output; with an adapter, `lora_a`
    [*inputs, R] and `lora_b` [R, *outputs]. `lora_b` is initialized to zeros, so that a new
    adapter has no effect.

    Attributes:
      inputs: sizes of the last dimensions of x, which are contracted.
      outputs: sizes of the dimensions that replace them.
      axes: logical names of the kernel's axes, inputs first.
      std: standard deviation of the kernel's normal initializer.
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
        """Maps [..., *inputs] to [..., *outputs] of `dtype`."""
        inputs, outputs, n = tuple(self.inputs), tuple(self.outputs), len(self.inputs)
        is_int8 = self.lora is not None and self.lora.base_dtype == "int8"
        kernel_init = _init_int8 if is_int8 else nn.initializers.normal(self.std)
        kernel_dtype = jnp.int8 if is_int8 else self.param_dtype
        kernel_init = partitioned(kernel_init, *self.axes)
        kernel = self.param("kernel", kernel_init, inputs + outputs, kernel_dtype)
        result = project(x, kernel, n, self.dtype)
        if is_int8:
            scale_init = nn.initializers.constant(self.std / _INT8_STD)
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
        low_rank = project(x, lora_a, n, self.dtype)
        return result + self.lora.scale * project(low_rank, lora_b, 1, self.dtype)


_INT8_STD = (127**2 / 3) ** 0.5


def _init_int8(key: jax.Array, shape: Sequence[int], dtype: Dtype) -> jax.Array:
    """Initializes an int8 kernel uniformly, with standard deviation `_INT8_STD`."""
    return jax.random.randint(key, shape, -127, 128, dtype)


class RMSNorm(nn.Module):
    """Root-mean-square norm, x / rms(x) * (offset + scale), computed in float32."""

    size: int
    epsilon: float
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    axis: str = "embed"  # Logical name of the last axis.
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., D] of `dtype`."""
        init = partitioned(nn.initializers.constant(1.0 - self.offset), self.axis)
        scale = self.param("scale", init, (self.size,), self.param_dtype)
        scale = scale if not self.offset else self.offset + scale.astype(jnp.float32)
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(self.dtype)


class Embedding(nn.Module):
    """A table of token embeddings; `attend` uses it as an output head."""

    rows: int
    size: int
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    std: float = 1.0

    def setup(self) -> None:
        init = partitioned(nn.initializers.normal(self.std), "vocab", "embed")
        self.embedding = self.param("embedding", init, (self.rows, self.size), self.param_dtype)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Maps int ids [...] to [..., D] of `dtype`; ids outside the table give NaN."""
        vectors = jnp.take(self.embedding, ids, axis=0).astype(self.dtype)
        # Sharded like the table. Without this intermediate layout, XLA copies all rows to every
        # device of a mesh with both `data` and `fsdp`.
        return constrain(vectors, "batch_lookup", *[None] * (ids.ndim - 1), "embed")

    def attend(self, x: jax.Array) -> jax.Array:
        """Maps [..., D] to [..., V] float32, the dot products with every row."""
        return float32_sums(x, self.embedding, (1,), self.dtype)


class Head(nn.Module):
    """An untied output head: maps [..., D] of any floating dtype to [..., V] float32.

    Attributes:
      size: D.
      rows: V.
      std: standard deviation of the initializer.
      dtype: dtype of the product's factors.
      param_dtype: dtype of the kernel [D, V].
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
    """Zeroes a random fraction `rate` of x and scales up the rest, unless `deterministic`."""
    if deterministic or rate == 0.0:
        return x
    keep = jax.random.bernoulli(module.make_rng(DROPOUT), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


@dataclasses.dataclass(frozen=True)
class Attention:
    """Attention with a float32 softmax.

    Attributes:
      implementation: "xla"; "cudnn", flash attention on a GPU, for even lengths; or "blocks",
        `block_attention` on a single CPU device, for long sequences; or "splash",
        `splash_attention` on TPUs, for causal self-attention over long sequences. Unsupported cases
        fall back to XLA.
      scale: factor of the scores; T5 uses none.
      is_causal: query q sees only keys 0 ... q.
      causal_mask: the given mask lets query q see only keys up to K - Q + q, so "blocks" may skip
        the others.
    """

    implementation: str = "xla"
    scale: float = 1.0
    is_causal: bool = False
    causal_mask: bool = False

    def __call__(
        self,
        query_BxQxNxH: jax.Array,
        key_BxKxNxH: jax.Array,
        value_BxKxNxH: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array | None,
        drop: Callable[[jax.Array], jax.Array] | None = None,
        segments_BxQ: jax.Array | None = None,
    ) -> jax.Array:
        """Computes attention.

        Args:
          query_BxQxNxH: queries; like keys and values, of the compute dtype.
          key_BxKxNxH: keys; unless `drop` is given, they may have fewer heads, each shared by a
            group of query heads.
          value_BxKxNxH: values, with as many heads as the keys.
          bias: added to the scores; broadcasts to [B, N, Q, K].
          mask: bool, True where a query sees a key; broadcasts to [B, N, Q, K].
          drop: applied to the attention weights, which are then materialized.
          segments_BxQ: int32, if the mask says the same as: a query sees earlier keys of its own
            segment. Queries of padding, whose results are not used, may see something else.

        Returns:
          [B, Q, N, H].
        """
        implementation = self.implementation
        if implementation == "splash":
            if segments_BxQ is not None and splash_attention.fits(query_BxQxNxH, key_BxKxNxH):
                arrays = query_BxQxNxH, key_BxKxNxH, value_BxKxNxH, segments_BxQ
                return splash_attention.attend(*arrays, scale=self.scale)
            implementation = "xla"
        lengths = query_BxQxNxH.shape[1], key_BxKxNxH.shape[1]
        if implementation == "blocks":
            is_long = min(lengths) >= block_attention.MIN_LENGTH
            shares_bias = bias is None or bias.shape[0] == 1  # Across examples.
            if is_long and shares_bias and drop is None and on_one_cpu():
                return block_attention.attend(
                    query_BxQxNxH,
                    key_BxKxNxH,
                    value_BxKxNxH,
                    bias,
                    mask,
                    is_causal=self.is_causal or self.causal_mask,
                    scale=self.scale,
                )
            implementation = "xla"
        if any(length % 2 for length in lengths):
            implementation = "xla"
        if implementation == "cudnn":
            # cuDNN needs a bias of the inputs' dtype and a mask with full query and key dimensions.
            bias = None if bias is None else bias.astype(query_BxQxNxH.dtype)
            mask = None if mask is None else jnp.broadcast_to(mask, (*mask.shape[:2], *lengths))
        if drop is None:
            return jax.nn.dot_product_attention(  # pyright: ignore[reportCallIssue]
                query_BxQxNxH,
                key_BxKxNxH,
                value_BxKxNxH,
                bias,
                mask,
                scale=self.scale,
                is_causal=self.is_causal,
                implementation=implementation,  # pyright: ignore[reportArgumentType]
            )
        scores = self.scale * jnp.einsum(
            "BQNH,BKNH->BNQK", query_BxQxNxH, key_BxKxNxH, preferred_element_type=jnp.float32
        )
        scores = scores if bias is None else scores + bias
        if self.is_causal:
            causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
            mask = causal if mask is None else mask & causal
        if mask is not None:
            scores = jnp.where(mask, scores, block_attention.MASKED_SCORE)
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
    """Computes attention for a decoding step, where `Attention` would transpose the whole cache.

    Args:
      query_Bx1xNxH: queries, of the compute dtype.
      key_BxMxKxH: keys, heads before positions; N / M query heads share one head.
      value_BxMxKxH: values, laid out like the keys.
      bias: added to the scores; broadcasts to [B, M, N / M, K].
      mask: bool, True where a query sees a key; broadcasts to [B, M, N / M, K].
      scale: factor of the scores.

    Returns:
      [B, 1, N, H].
    """
    rows, heads, _, width = key_BxMxKxH.shape
    query = query_Bx1xNxH.reshape(rows, heads, -1, width)
    scores = scale * jnp.einsum(
        "BMGH,BMKH->BMGK", query, key_BxMxKxH, preferred_element_type=jnp.float32
    )
    scores = scores if bias is None else scores + bias
    scores = jnp.where(mask, scores, block_attention.MASKED_SCORE)
    weights = jax.nn.softmax(scores).astype(value_BxMxKxH.dtype)
    result = jnp.einsum("BMGK,BMKH->BMGH", weights, value_BxMxKxH)
    return result.reshape(query_Bx1xNxH.shape)


def best_attention(dtype: Dtype, head: int) -> str:
    """Returns the best `Attention` implementation for the devices, compute dtype and head width."""
    if flash_attention_fits(dtype, head):
        return "cudnn"
    return {"cpu": "blocks", "tpu": "splash"}.get(jax.default_backend(), "xla")


def flash_attention_fits(dtype: Dtype, head: int) -> bool:
    """Returns whether the devices support cuDNN flash attention: NVIDIA GPUs, Ampere or newer.

    Args:
      dtype: of queries, keys and values.
      head: H.
    """
    backend = get_backend()
    if "cuda" not in backend.platform_version or float(backend.devices()[0].compute_capability) < 8:
        return False
    return jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16) and head % 8 == 0 and head <= 128


def pin_residual(x_BxQxD: jax.Array) -> jax.Array:
    """Pins the sharding of the residual stream: rows split, width whole."""
    return constrain(x_BxQxD, "batch", "length", "embed_activation")


def pin_heads(x_BxQxNxH: jax.Array) -> jax.Array:
    """Pins the sharding of queries, keys and values: rows and heads split."""
    return constrain(x_BxQxNxH, "batch", "length", "heads", "kv")
