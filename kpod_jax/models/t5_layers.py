"""T5's encoder and decoder stacks: layers, attention and feed-forward.

Letters: B batch, S source positions, Q and K lengths of queries and keys, L cache positions,
D model width, N heads, H head width.
"""

import functools
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kpod_jax.models.layers import (
    POLICIES,
    Attention,
    Dtype,
    LoRAConfig,
    Projection,
    RMSNorm,
    attend_cache,
    dropout,
    partitioned,
    pin_heads,
    pin_residual,
)
from kpod_jax.models.relative_positions import buckets, relative_bias
from kpod_jax.models.t5_config import ACTIVATIONS, T5Config
from kpod_jax.parallel.sharding import constrain

_ACTIVATION = {
    "relu": jax.nn.relu,
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}


class LayerCache(NamedTuple):
    """The cache of one decoder layer.

    Heads come before positions, so that attention reads the arrays without a transpose.

    Attributes:
      key: [B, N, L, H], the keys of the last L steps; step t is stored at index t mod L.
      value: [B, N, L, H], the values of the last L steps.
      cross_key: [B, N, S, H], keys of the encoder's output.
      cross_value: [B, N, S, H], values of the encoder's output.
    """

    key: jax.Array
    value: jax.Array
    cross_key: jax.Array
    cross_value: jax.Array


# One `LayerCache` per decoder layer.
Cache: TypeAlias = tuple[LayerCache, ...]


class Stack(nn.Module):
    """An encoder or decoder: layers with a shared relative bias, and the final norm.

    A call takes x [B, Q, D]; a bool mask that broadcasts to [B, N, Q, Q], True where a query sees
    a key, or None; in a decoder, the encoder's output [B, S, D] and its mask, which broadcasts to
    [B, N, Q, S]; and `deterministic`. It returns [B, Q, D] of `dtype`. For the decoding methods,
    see `t5.T5`.
    """

    config: T5Config
    dtype: Dtype
    param_dtype: Dtype
    remat: str
    scan_layers: bool
    lora: LoRAConfig | None
    attention: str
    is_decoder: bool

    def setup(self) -> None:
        c = self.config
        count = c.num_decoder_layers if self.is_decoder else c.num_layers
        layer: Any = _Layer
        if self.remat != "none":
            layer = nn.remat(
                layer,
                policy=POLICIES[self.remat],
                prevent_cse=not self.scan_layers,
                static_argnums=(6,),
            )
        types = (self.dtype, self.param_dtype, self.lora)
        arguments = (c, *types, self.attention, self.is_decoder)
        if self.scan_layers:
            layer = nn.scan(
                layer,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
                length=count,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            self.layers = layer(*arguments)
        else:
            self.layers = [layer(*arguments) for _ in range(count)]
        bias_init = partitioned(nn.initializers.normal(c.d_model**-0.5), "buckets", "heads")
        shape = (c.relative_attention_num_buckets, c.num_heads)
        self.relative_bias = self.param("relative_bias", bias_init, shape, self.param_dtype)
        self.final_norm = RMSNorm(c.d_model, c.layer_norm_epsilon, self.dtype, self.param_dtype)

    def __call__(
        self,
        x_BxQxD: jax.Array,
        mask: jax.Array | None,
        encoded_BxSxD: jax.Array | None,
        encoded_mask: jax.Array | None,
        deterministic: bool,
    ) -> jax.Array:
        c, length = self.config, x_BxQxD.shape[1]
        bias = relative_bias(
            self.relative_bias,
            length,
            length,
            bidirectional=not self.is_decoder,
            max_distance=c.relative_attention_max_distance,
        )
        x = pin_residual(dropout(self, x_BxQxD, c.dropout_rate, deterministic))
        arguments = (bias, mask, encoded_BxSxD, encoded_mask, deterministic)
        if self.scan_layers:
            x, _ = self.layers(x, *arguments)  # pyright: ignore[reportCallIssue]
        else:
            for layer in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
                x, _ = layer(x, *arguments)
        return pin_residual(dropout(self, self.final_norm(x), c.dropout_rate, deterministic))

    def start_cache(self, encoded_BxSxD: jax.Array, length: int) -> Cache:
        return tuple(layer.start_cache(encoded_BxSxD, length) for layer in self.layers)  # pyright: ignore[reportGeneralTypeIssues]

    def fill_cache(self, cache: Cache, slots_R: jax.Array, encoded_RxSxD: jax.Array) -> Cache:
        return tuple(
            layer.fill_cache(layer_cache, slots_R, encoded_RxSxD)
            for layer, layer_cache in zip(self.layers, cache, strict=True)  # pyright: ignore[reportArgumentType]
        )

    def step(
        self,
        x_Bx1xD: jax.Array,
        time: jax.Array,
        age_B: jax.Array,
        input_mask_BxS: jax.Array,
        cache: Cache,
    ) -> tuple[jax.Array, Cache]:
        length, table = cache[0].key.shape[2], self.relative_bias
        max_distance = self.config.relative_attention_max_distance
        # Biases by distance, then by the key's index in the cache.
        bias_LxN = table[buckets(-np.arange(length), table.shape[0], False, max_distance)]
        distance_L = (time - jnp.arange(length)) % length
        bias = bias_LxN[distance_L].T[None, :, None]
        seen = (distance_L <= age_B[:, None])[:, None, None]
        index = time % length
        encoded_mask = input_mask_BxS[:, None, None, :]
        x, layers = x_Bx1xD, []
        for layer, layer_cache in zip(self.layers, cache, strict=True):  # pyright: ignore[reportArgumentType]
            x, layer_cache = layer.step(x, index, bias, seen, encoded_mask, layer_cache)
            layers.append(layer_cache)
        return self.final_norm(x), tuple(layers)


class _Layer(nn.Module):
    """Self-attention, in a decoder cross-attention, and feed-forward, all with pre-norms."""

    config: T5Config
    dtype: Dtype
    param_dtype: Dtype
    lora: LoRAConfig | None
    attention: str
    is_decoder: bool

    def setup(self) -> None:
        c = self.config
        types = (self.dtype, self.param_dtype)
        norm = functools.partial(RMSNorm, c.d_model, c.layer_norm_epsilon, *types)
        self.self_attention_norm = norm()
        self.self_attention = _Attention(c, *types, self.lora, self.attention)
        if self.is_decoder:
            self.cross_attention_norm = norm()
            self.cross_attention = _Attention(c, *types, self.lora, self.attention)
        self.mlp_norm = norm()
        self.mlp = _FeedForward(c, *types, self.lora)

    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array,
        mask: jax.Array | None,
        encoded: jax.Array | None,
        encoded_mask: jax.Array | None,
        deterministic: bool,
    ) -> tuple[jax.Array, None]:
        def add(x: jax.Array, update: jax.Array) -> jax.Array:
            return pin_residual(x + dropout(self, update, self.config.dropout_rate, deterministic))

        normed, attention = self.self_attention_norm(x), self.self_attention
        key, value = attention.keys_values(normed, deterministic)
        update = attention(normed, key, value, bias, mask, deterministic, is_causal=self.is_decoder)
        x = add(x, update)
        if self.is_decoder:
            assert encoded is not None
            normed, attention = self.cross_attention_norm(x), self.cross_attention
            key, value = attention.keys_values(encoded, deterministic)
            x = add(x, attention(normed, key, value, None, encoded_mask, deterministic))
        return add(x, self.mlp(self.mlp_norm(x), deterministic)), None

    def start_cache(self, encoded: jax.Array, length: int) -> LayerCache:
        c = self.config
        empty = jnp.zeros((encoded.shape[0], c.num_heads, length, c.d_kv), self.dtype)
        return LayerCache(empty, empty, *self._cross_keys_values(encoded))

    def fill_cache(self, cache: LayerCache, slots: jax.Array, encoded: jax.Array) -> LayerCache:
        key, value = self._cross_keys_values(encoded)
        return cache._replace(
            cross_key=cache.cross_key.at[slots].set(key, mode="drop"),
            cross_value=cache.cross_value.at[slots].set(value, mode="drop"),
        )

    def _cross_keys_values(self, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Maps [B, S, D] to keys and values, [B, N, S, H] each."""
        key, value = self.cross_attention.keys_values(encoded, True)
        return jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)

    def step(
        self,
        x: jax.Array,
        index: jax.Array,
        bias: jax.Array,
        seen: jax.Array,
        encoded_mask: jax.Array,
        cache: LayerCache,
    ) -> tuple[jax.Array, LayerCache]:
        def put(cached: jax.Array, new: jax.Array) -> jax.Array:
            new = jnp.swapaxes(new, 1, 2)
            return jax.lax.dynamic_update_slice_in_dim(cached, new, index, axis=2)

        normed = self.self_attention_norm(x)
        new_key, new_value = self.self_attention.keys_values(normed, True)
        cache = cache._replace(key=put(cache.key, new_key), value=put(cache.value, new_value))
        x += self.self_attention.step(normed, cache.key, cache.value, bias, seen)
        normed, keys_values = self.cross_attention_norm(x), (cache.cross_key, cache.cross_value)
        x += self.cross_attention.step(normed, *keys_values, None, encoded_mask)
        return x + self.mlp(self.mlp_norm(x), True), cache


class _Attention(nn.Module):
    """Multi-head attention without 1 / sqrt(H), which the initialization of q absorbs."""

    config: T5Config
    dtype: Dtype
    param_dtype: Dtype
    lora: LoRAConfig | None
    attention: str

    def setup(self) -> None:
        c = self.config
        width, heads = (c.d_model,), (c.num_heads, c.d_kv)
        types = (self.dtype, self.param_dtype, self.lora)
        axes = ("embed", "heads", "kv")
        self.q = Projection(width, heads, axes, (c.d_model * c.d_kv) ** -0.5, *types)
        self.k = Projection(width, heads, axes, c.d_model**-0.5, *types)
        self.v = Projection(width, heads, axes, c.d_model**-0.5, *types)
        std = (c.num_heads * c.d_kv) ** -0.5
        self.o = Projection(heads, width, ("heads", "kv", "embed"), std, *types)

    def keys_values(self, x: jax.Array, deterministic: bool) -> tuple[jax.Array, jax.Array]:
        """Maps [B, K, D] to keys and values, [B, K, N, H] each."""
        return pin_heads(self.k(x, deterministic)), pin_heads(self.v(x, deterministic))

    def __call__(
        self,
        x: jax.Array,
        key: jax.Array,
        value: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array | None,
        deterministic: bool,
        is_causal: bool = False,
    ) -> jax.Array:
        """Maps [B, Q, D] to [B, Q, D], given keys and values, [B, K, N, H] each."""
        rate = self.config.dropout_rate
        drop = None
        if not deterministic and rate > 0:
            drop = functools.partial(dropout, self, rate=rate, deterministic=False)
        query = pin_heads(self.q(x, deterministic))
        attend = Attention(self.attention, is_causal=is_causal)
        result = attend(query, key, value, bias, mask, drop)
        return self.o(pin_heads(result), deterministic)

    def step(
        self,
        x: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        bias: jax.Array | None,
        mask: jax.Array,
    ) -> jax.Array:
        """Maps [B, 1, D] to [B, 1, D], given the cache's keys and values, [B, N, K, H] each."""
        result = attend_cache(pin_heads(self.q(x, True)), keys, values, bias, mask)
        return self.o(pin_heads(result), True)


class _FeedForward(nn.Module):
    config: T5Config
    dtype: Dtype
    param_dtype: Dtype
    lora: LoRAConfig | None

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        c = self.config

        def project(name: str) -> jax.Array:
            std, axes = c.d_model**-0.5, ("embed", "mlp")
            layer = Projection((c.d_model,), (c.d_ff,), axes, std, *types, name=name)
            return constrain(layer(x, deterministic), "batch", "length", "mlp")

        types = (self.dtype, self.param_dtype, self.lora)
        activation = _ACTIVATION[ACTIVATIONS[c.feed_forward_proj]]
        hidden = (
            activation(project("wi_0")) * project("wi_1") if c.gated else activation(project("wi"))
        )
        hidden = dropout(self, hidden, c.dropout_rate, deterministic)
        out = Projection((c.d_ff,), (c.d_model,), ("mlp", "embed"), c.d_ff**-0.5, *types, name="wo")
        return out(hidden, deterministic)
