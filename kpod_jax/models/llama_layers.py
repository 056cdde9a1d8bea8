"""The LLaMA family's layers: attention with rotary positions, and feed-forward.

Letters: B batch, L positions, of which S are a prompt's, Q and K queries and keys, N heads of
queries, M of keys and values, H width of a head, D width of the model.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kpod_jax.models.layers import (
    Dtype,
    LoRAConfig,
    Projection,
    RMSNorm,
    attend,
    attend_cache,
    pin_heads,
    pin_residual,
)
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.parallel.sharding import constrain

STD = 0.02


class Encoded(NamedTuple):
    """What a prompt leaves: keys and values of every layer.

    Attributes:
      keys: one [B, S, M, H] a layer, in a tuple or stacked.
      values: likewise.
    """

    keys: Any
    values: Any


class Layer(nn.Module):
    """Self-attention and feed-forward, each on its normed input.

    A call takes x [B, Q, D], the rotation at the queries' places (`rotation_at`), what is seen,
    [B, 1, Q, L] bool, whether nothing is dropped, and the keys and values of the L - Q positions
    before, [B, L - Q, M, H] each, or None. It gives x [B, Q, D], and the keys and values of its own
    positions, [B, Q, M, H] each; all of the type `dtype`.

    A `step` takes one position, x [B, 1, D], its place in the cache, its rotation, what is seen,
    [B, 1, 1, L] bool, and the cache's keys and values, [B, M, L, H] each. It gives x and the cache
    with that position.

    Attributes:
      norm_class: of both norms, and of the model's last.
      activation: of the feed-forward layer's gate.
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
        norm = functools.partial(self.norm_class, c.hidden_size, c.rms_norm_eps, *types)
        self.self_attention_norm = norm()
        self.self_attention = _Attention(c, *types, self.lora, self.attention)
        self.mlp_norm = norm()
        self.mlp = _FeedForward(c, *types, self.lora, self.activation)

    def __call__(
        self,
        x: jax.Array,
        rotation: jax.Array,
        seen: jax.Array,
        deterministic: bool,
        past: Encoded | None,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        normed, attention = self.self_attention_norm(x), self.self_attention
        own = key, value = attention.keys_values(normed, rotation, deterministic)
        if past is not None:
            key = jnp.concatenate([past.keys, key], axis=1)
            value = jnp.concatenate([past.values, value], axis=1)
        x = pin_residual(x + attention(normed, rotation, key, value, seen, deterministic))
        x = pin_residual(x + self.mlp(self.mlp_norm(x), deterministic))
        return x, own

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

        normed, attention = self.self_attention_norm(x), self.self_attention
        key, value = attention.keys_values(normed, rotation, True)
        keys, values = put(keys, key), put(values, value)
        x += attention.step(normed, rotation, keys, values, seen)
        return x + self.mlp(self.mlp_norm(x), True), keys, values


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

        def into(name: str, heads: int) -> Projection:
            axes = ("embed", "heads", "kv")
            inputs, outputs = (c.hidden_size,), (heads, c.head_dim)
            return Projection(inputs, outputs, axes, STD, *types, use_bias=name in c.biases)

        self.q = into("q", c.num_attention_heads)
        self.k = into("k", c.num_key_value_heads)
        self.v = into("v", c.num_key_value_heads)
        self.o = Projection(
            (c.num_attention_heads, c.head_dim),
            (c.hidden_size,),
            ("heads", "kv", "embed"),
            STD,
            *types,
            use_bias="o" in c.biases,
        )
        if c.qk_norm:
            norm = functools.partial(RMSNorm, c.head_dim, c.rms_norm_eps, *types[:2], axis="kv")
            self.q_norm, self.k_norm = norm(), norm()

    def keys_values(
        self, x: jax.Array, rotation: jax.Array, deterministic: bool
    ) -> tuple[jax.Array, jax.Array]:
        """[B, K, D] -> two of [B, K, M, H], the keys turned."""
        key = self.k(x, deterministic)
        key = self.k_norm(key) if self.config.qk_norm else key
        return pin_heads(_turn(key, rotation)), pin_heads(self.v(x, deterministic))

    def __call__(
        self,
        x: jax.Array,
        rotation: jax.Array,
        key: jax.Array,
        value: jax.Array,
        seen: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """[B, Q, D] and turned keys and values [B, K, M, H] -> [B, Q, D]."""
        query, scale = self._queries(x, rotation, deterministic), self.config.head_dim**-0.5
        result = attend(
            query,
            key,
            value,
            None,
            seen,
            causal_mask=True,
            scale=scale,
            implementation=self.attention,
        )
        return self.o(pin_heads(result), deterministic)

    def step(
        self,
        x: jax.Array,
        rotation: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        seen: jax.Array,
    ) -> jax.Array:
        """[B, 1, D] and a cache's [B, M, K, H] -> [B, 1, D]."""
        query, scale = self._queries(x, rotation, True), self.config.head_dim**-0.5
        result = attend_cache(query, keys, values, None, seen, scale=scale)
        return self.o(pin_heads(result), True)

    def _queries(self, x: jax.Array, rotation: jax.Array, deterministic: bool) -> jax.Array:
        query = self.q(x, deterministic)
        query = self.q_norm(query) if self.config.qk_norm else query
        return pin_heads(_turn(query, rotation))


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

        def into(name: str) -> jax.Array:
            sizes = (c.hidden_size,), (c.intermediate_size,)
            layer = Projection(*sizes, ("embed", "mlp"), STD, *types, name=name)
            return constrain(layer(x, deterministic), "batch", "length", "mlp")

        hidden = self.activation(into("gate")) * into("up")
        sizes = (c.intermediate_size,), (c.hidden_size,)
        out = Projection(*sizes, ("mlp", "embed"), STD, *types, name="down")
        return out(hidden, deterministic)


def frequencies(config: LlamaConfig) -> np.ndarray:
    """[H / 2] float32, by how much each pair of dimensions turns from one place to the next."""
    scaling = config.rope_scaling
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
    result = 1.0 / config.rope_theta**exponents
    if scaling.rope_type == "linear":
        return (result / scaling.factor).astype(np.float32)
    if scaling.rope_type == "llama3":
        wavelength = 2 * np.pi / result
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        # 0 at wavelengths that are scaled in full, 1 at those that are not scaled.
        smooth = (scaling.original_max_position_embeddings / wavelength - low) / (high - low)
        smooth = np.clip(smooth, 0, 1)
        result = (1 - smooth) * result / scaling.factor + smooth * result
    return result.astype(np.float32)


def rotation_at(places_BxL: jax.Array, config: LlamaConfig) -> jax.Array:
    """[2, B, L, 1, H] float32: cosines and sines."""
    angles = places_BxL[..., None].astype(jnp.float32) * frequencies(config)
    angles = jnp.concatenate([angles, angles], axis=-1)[:, :, None]
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)])


def _turn(x_BxLxNxH: jax.Array, rotation: jax.Array) -> jax.Array:
    """Rotary position embedding: dimensions i and i + H / 2 are a pair."""
    x = x_BxLxNxH.astype(jnp.float32)
    left, right = jnp.split(x, 2, axis=-1)
    cosine, sine = rotation
    turned = x * cosine + jnp.concatenate([-right, left], axis=-1) * sine
    return turned.astype(x_BxLxNxH.dtype)
