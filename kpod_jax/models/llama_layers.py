"""The LLaMA family's layers: attention with rotary positions, and feed-forward.

Letters: B batch, L positions, S prompt positions, Q and K lengths of queries and keys, N query
heads, M key and value heads, H head width, D model width.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpod_jax.models.layers import (
    Attention,
    Dtype,
    LoRAConfig,
    Projection,
    RMSNorm,
    attend_cache,
    pin_heads,
    pin_residual,
)
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.models.rope import RopeScaling, frequencies
from kpod_jax.parallel.sharding import constrain

STD = 0.02


class Encoded(NamedTuple):
    """An encoded prompt: the keys and values of every layer.

    Attributes:
      keys: [B, S, M, H] per layer, in a tuple or stacked.
      values: [B, S, M, H] per layer, in a tuple or stacked.
    """

    keys: Any
    values: Any


def make_norm(
    norm_class: Any, config: LlamaConfig, size: int, *types: Dtype, axis: str = "embed"
) -> Any:
    """Returns a norm of a model."""
    offset = config.traits.norm_offset
    more = {"offset": offset} if offset else {}
    return norm_class(size, config.rms_norm_eps, *types, axis=axis, **more)


class Layer(nn.Module):
    """Self-attention and feed-forward, with norms before or after them, or both.

    A call takes x [B, Q, D], the rotation at the queries' positions (`rotation_at`), the mask
    `seen` [B, 1, Q, L] bool, `deterministic`, the keys and values of the L - Q earlier
    positions, [B, L - Q, M, H] each, or None, and the layer's kind. Where a model's layers differ,
    rotations and masks are those of all kinds, stacked, and the kind is an index; else it is None.
    If the mask is that of `segments` [B, Q] (`layers.Attention`), these are given, too.
    A call returns x [B, Q, D] and the keys and values of the Q positions, [B, Q, M, H] each, all of
    `dtype`.

    `step` takes a single position x [B, 1, D], its index in the cache, its rotation, the mask
    `seen` [B, 1, 1, L] bool, and the cache's keys and values, [B, M, L, H] each. It returns x and
    the updated keys and values.

    Attributes:
      norm_class: class of both norms and of the model's final norm.
      activation: activation of the feed-forward layer's gate.
    """

    norm_class: ClassVar[Any] = RMSNorm
    activation: ClassVar[Callable[[jax.Array], jax.Array]] = staticmethod(jax.nn.silu)

    config: LlamaConfig
    dtype: Dtype
    param_dtype: Dtype
    lora: LoRAConfig | None
    attention: str

    def setup(self) -> None:
        c, types = self.config, (self.dtype, self.param_dtype)
        norm = functools.partial(make_norm, self.norm_class, c, c.hidden_size, *types)
        norms = c.traits.norms
        if norms != "after":
            self.self_attention_norm = norm()
        if norms == "before":
            self.mlp_norm = norm()
        elif norms == "both":
            self.mlp_pre_norm = norm()
        if norms != "before":
            self.self_attention_post_norm, self.mlp_post_norm = norm(), norm()
        self.self_attention = _Attention(c, *types, self.lora, self.attention)
        gelu = c.traits.activation == "gelu_pytorch_tanh"
        self.mlp = _FeedForward(c, *types, self.lora, jax.nn.gelu if gelu else self.activation)

    def _before_attention(self, x: jax.Array) -> jax.Array:
        return x if self.config.traits.norms == "after" else self.self_attention_norm(x)

    def _after_attention(self, x: jax.Array) -> jax.Array:
        return x if self.config.traits.norms == "before" else self.self_attention_post_norm(x)

    def _feed_forward(self, x: jax.Array, deterministic: bool) -> jax.Array:
        norms = self.config.traits.norms
        if norms == "before":
            return self.mlp(self.mlp_norm(x), deterministic)
        x = self.mlp_pre_norm(x) if norms == "both" else x
        return self.mlp_post_norm(self.mlp(x, deterministic))

    def __call__(
        self,
        x: jax.Array,
        rotation: jax.Array,
        seen: jax.Array,
        deterministic: bool,
        past: Encoded | None,
        kind: jax.Array | int | None = None,
        segments: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        if kind is not None:
            rotation, seen = rotation[kind], seen[kind]
        normed, attention = self._before_attention(x), self.self_attention
        new_keys_values = key, value = attention.keys_values(normed, rotation, deterministic)
        if past is not None:
            key = jnp.concatenate([past.keys, key], axis=1)
            value = jnp.concatenate([past.values, value], axis=1)
        attended = attention(normed, rotation, key, value, seen, deterministic, segments)
        x = pin_residual(x + self._after_attention(attended))
        return pin_residual(x + self._feed_forward(x, deterministic)), new_keys_values

    def step(
        self,
        x: jax.Array,
        place: jax.Array,
        rotation: jax.Array,
        seen: jax.Array,
        keys: jax.Array,
        values: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        def put(cached: jax.Array, new: jax.Array) -> jax.Array:
            new = jnp.swapaxes(new, 1, 2)
            return jax.lax.dynamic_update_slice_in_dim(cached, new, place, axis=2)

        normed, attention = self._before_attention(x), self.self_attention
        key, value = attention.keys_values(normed, rotation, True)
        keys, values = put(keys, key), put(values, value)
        x += self._after_attention(attention.step(normed, rotation, keys, values, seen))
        return x + self._feed_forward(x, True), keys, values


class _Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    config: LlamaConfig
    dtype: Dtype
    param_dtype: Dtype
    lora: LoRAConfig | None
    attention: str

    def setup(self) -> None:
        c = self.config
        types = (self.dtype, self.param_dtype, self.lora)

        def projection(name: str, heads: int) -> Projection:
            axes = ("embed", "heads", "kv")
            inputs, outputs = (c.hidden_size,), (heads, c.head_dim)
            return Projection(inputs, outputs, axes, STD, *types, use_bias=name in c.biases)

        self.q = projection("q", c.num_attention_heads)
        self.k = projection("k", c.num_key_value_heads)
        self.v = projection("v", c.num_key_value_heads)
        self.o = Projection(
            (c.num_attention_heads, c.head_dim),
            (c.hidden_size,),
            ("heads", "kv", "embed"),
            STD,
            *types,
            use_bias="o" in c.biases,
        )
        if c.traits.qk_norm == "head":
            norm = functools.partial(make_norm, RMSNorm, c, c.head_dim, *types[:2], axis="kv")
            self.q_norm, self.k_norm = norm(), norm()
        elif c.traits.qk_norm == "all":
            norm = functools.partial(make_norm, RMSNorm, c, axis="heads")
            self.q_all_norm = norm(c.num_attention_heads * c.head_dim, *types[:2])
            self.k_all_norm = norm(c.num_key_value_heads * c.head_dim, *types[:2])

    def keys_values(
        self, x: jax.Array, rotation: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Maps [B, K, D] to rotated keys and values, [B, K, M, H] each."""
        key, kind = self.k(x, deterministic), self.config.traits.qk_norm
        if kind:
            key = self.k_norm(key) if kind == "head" else _over_all(self.k_all_norm, key)
        return pin_heads(_rotate(key, rotation)), pin_heads(self.v(x, deterministic))

    def __call__(
        self,
        x: jax.Array,
        rotation: jax.Array,
        key: jax.Array,
        value: jax.Array,
        seen: jax.Array,
        deterministic: bool,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        """Maps [B, Q, D] to [B, Q, D], given rotated keys and values, [B, K, M, H] each."""
        query, scale = self._queries(x, rotation, deterministic), self.config.attention_scale
        attend = Attention(self.attention, scale, causal_mask=True)
        result = attend(query, key, value, None, seen, segments_BxQ=segments)
        return self.o(pin_heads(result), deterministic)

    def step(
        self,
        x: jax.Array,
        rotation: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        seen: jax.Array,
    ) -> jax.Array:
        """Maps [B, 1, D] to [B, 1, D], given the cache's keys and values, [B, M, K, H] each."""
        query, scale = self._queries(x, rotation, True), self.config.attention_scale
        result = attend_cache(query, keys, values, None, seen, scale=scale)
        return self.o(pin_heads(result), True)

    def _queries(self, x: jax.Array, rotation: jax.Array, deterministic: bool) -> jax.Array:
        query, kind = self.q(x, deterministic), self.config.traits.qk_norm
        if kind:
            query = self.q_norm(query) if kind == "head" else _over_all(self.q_all_norm, query)
        return pin_heads(_rotate(query, rotation))


class _FeedForward(nn.Module):
    config: LlamaConfig
    dtype: Dtype
    param_dtype: Dtype
    lora: LoRAConfig | None
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        c = self.config
        types = (self.dtype, self.param_dtype, self.lora)

        def project(name: str) -> jax.Array:
            sizes = (c.hidden_size,), (c.intermediate_size,)
            layer = Projection(*sizes, ("embed", "mlp"), STD, *types, name=name)
            return constrain(layer(x, deterministic), "batch", "length", "mlp")

        hidden = self.activation(project("gate")) * project("up")
        sizes = (c.intermediate_size,), (c.hidden_size,)
        out = Projection(*sizes, ("mlp", "embed"), STD, *types, name="down")
        return out(hidden, deterministic)


def _over_all(norm: Callable[[jax.Array], jax.Array], heads: jax.Array) -> jax.Array:
    """Normalizes [..., N, H] over all heads together."""
    return norm(heads.reshape(*heads.shape[:-2], -1)).reshape(heads.shape)


def rotation_at(places_BxL: jax.Array, config: LlamaConfig, rope: str = "global") -> jax.Array:
    """Returns the cosines and sines of the positions' angles, [2, B, L, 1, R] float32.

    R is the number of rotated dimensions of a head; `rope` is that of a `LayerKind`.
    """
    theta, scaling = config.rope_theta, config.rope_scaling
    if rope == "local":
        theta, scaling = config.rope_local_base_freq, RopeScaling()
    rotations = frequencies(config.rotary_dim, theta, scaling)
    rotations = 0 * rotations if rope == "none" else rotations
    angles = places_BxL[..., None].astype(jnp.float32) * rotations
    angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None]
    factor = 1.0 if rope == "none" else scaling.attention_factor
    return factor * jnp.stack([jnp.cos(angles), jnp.sin(angles)])


def _rotate(x_BxLxNxH: jax.Array, rotation: jax.Array) -> jax.Array:
    """Rotates the first R dimensions of each head, with dimensions i and i + R / 2 as a pair."""
    cosine, sine = rotation
    size = cosine.shape[-1]
    x = x_BxLxNxH[..., :size].astype(jnp.float32)
    left, right = jnp.split(x, 2, axis=-1)
    rotated = x * cosine + jnp.concatenate([-right, left], axis=-1) * sine
    rotated = rotated.astype(x_BxLxNxH.dtype)
    if size == x_BxLxNxH.shape[-1]:
        return rotated
    return jnp.concatenate([rotated, x_BxLxNxH[..., size:]], axis=-1)
