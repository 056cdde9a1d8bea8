"""The LLaMA family in Flax Linen, behind the interface of an encoder-decoder.

A prompt is what T5's encoder reads, the target what its decoder writes: the prompt's keys and
values are what `encode` leaves. So batches, losses and decoding are those of T5. Where padding
stands does not matter, as places are counted by tokens.

Letters: B batch, S prompt positions, U target positions, L = S + U, Q queries, P parts of a prompt,
G positions to be written, M heads of keys and values, H width of a head, D width of the model,
V vocabulary, R rows.
"""

from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpod_jax.models.layers import (
    POLICIES,
    Dtype,
    Embedding,
    Head,
    LoRAConfig,
    pin_residual,
)
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.models.llama_layers import STD, Encoded, Layer, rotation_at


class Cache(NamedTuple):
    """Keys and values of every layer, [B, M, S + G, H], heads before positions.

    After the prompt's S positions, those of step t stand in place t mod G.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


class Llama(nn.Module):
    """A decoder-only model.

    Attributes:
      config: the architecture.
      dtype: of activations and matrix products; softmax and norms are computed in float32.
      param_dtype: of parameters.
      remat: as in `T5`.
      scan_layers: as in `T5`.
      lora: adapters, or None.
      attention: as in `T5`.
      layer_class: of its layers, which a family that differs a little replaces; None: `Layer`.
    """

    layer_class: ClassVar[Any] = None

    config: LlamaConfig
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    remat: str = "none"
    scan_layers: bool = True
    lora: LoRAConfig | None = None
    attention: str = "xla"

    def setup(self) -> None:
        c = self.config
        types = (self.dtype, self.param_dtype)
        self.shared = Embedding(c.vocab_size, c.hidden_size, *types, std=STD)
        layer: Any = self.layer_class or Layer
        norm = layer.norm_class
        if self.remat != "none":
            layer = nn.remat(
                layer,
                policy=POLICIES[self.remat],
                prevent_cse=not self.scan_layers,
                static_argnums=(4,),
            )
        arguments = (c, *types, self.lora, self.attention)
        if self.scan_layers:
            layer = nn.scan(
                layer,
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),  # pyright: ignore
                length=c.num_hidden_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            self.layers = layer(*arguments)
        else:
            self.layers = [layer(*arguments) for _ in range(c.num_hidden_layers)]
        self.final_norm = norm(c.hidden_size, c.rms_norm_eps, *types)
        if not c.tie_word_embeddings:
            self.lm_head = Head(c.hidden_size, c.vocab_size, STD, *types)

    def __call__(
        self,
        input_ids_BxS: jax.Array,
        input_mask_BxS: jax.Array,
        decoder_input_ids_BxU: jax.Array,
        deterministic: bool = True,
        segments_BxU: jax.Array | None = None,
    ) -> jax.Array:
        """[B, U, D], the output at the decoder's inputs, after the final norm.

        Args:
          input_ids_BxS: int, prompts without their last token.
          input_mask_BxS: bool, False at padding, wherever it stands.
          decoder_input_ids_BxU: int, each prompt's last token and the target's, without its last.
          deterministic: False drops, with the rng collection "dropout".
          segments_BxU: int, of rows that hold several texts: a token sees and counts those of its
            own number alone. Prompts then stand in the decoder's inputs, and S is 0.
        """
        if segments_BxU is not None:
            x = self.embed(decoder_input_ids_BxU)
            seen = jnp.tril(segments_BxU[:, :, None] == segments_BxU[:, None, :])
            # How many tokens of the own text stand before.
            places = seen.sum(axis=2, dtype=jnp.int32) - 1
            return self.final_norm(self._attended(x, places, seen, deterministic, None)[0])
        ids = jnp.concatenate([input_ids_BxS, decoder_input_ids_BxU], axis=1)
        mask = _longer(input_mask_BxS, decoder_input_ids_BxU.shape[1])
        hidden, _ = self._run(self.embed(ids), mask, deterministic)
        hidden = self.final_norm(hidden[:, input_ids_BxS.shape[1] :])
        if self.is_initializing():
            self.logits(hidden[:, :1])
        return hidden

    def embed(self, ids: jax.Array) -> jax.Array:
        """[...] int -> [..., D]."""
        return self.shared(ids)

    def encode(
        self,
        input_ids_BxS: jax.Array | None,
        input_mask_BxS: jax.Array,
        *,
        embeddings_BxSxD: jax.Array | None = None,
        causal: bool = True,
        deterministic: bool = True,
    ) -> Encoded:
        """Keys and values of prompts; arguments are those of `T5.encode`, always causal."""
        del causal
        if (input_ids_BxS is None) == (embeddings_BxSxD is None):
            raise TypeError("encode takes either input_ids_BxS or embeddings_BxSxD")
        x = self.embed(input_ids_BxS) if embeddings_BxSxD is None else embeddings_BxSxD  # pyright: ignore[reportArgumentType]
        return self._run(x, input_mask_BxS, deterministic)[1]

    def decode(
        self,
        encoded: Encoded,
        input_mask_BxS: jax.Array,
        decoder_input_ids_BxU: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """[B, U, D], as `__call__` has it, from the keys and values that `encode` left."""
        mask = _longer(input_mask_BxS, decoder_input_ids_BxU.shape[1])
        hidden, _ = self._run(self.embed(decoder_input_ids_BxU), mask, deterministic, encoded)
        return self.final_norm(hidden)

    def decode_prefixes(
        self,
        encoded: Encoded,
        prefixes_BxPxS: jax.Array,
        decoder_input_ids_BxU: jax.Array,
    ) -> jax.Array:
        """[B, P, U, D]: what `decode` has after each of P parts of one prompt, in a single pass.

        The parts' targets stand side by side. Each sees its own part of the prompt and itself, and
        has the places that follow its part, as if nothing else were there.

        Args:
          encoded: from `encode`, of the whole prompt.
          prefixes_BxPxS: bool, the tokens of each part: with every token all those before it, since
            keys and values of a token hold what stands before.
          decoder_input_ids_BxU: int, as in `decode`, the same after every part.
        """
        rows, parts, _ = prefixes_BxPxS.shape
        count = decoder_input_ids_BxU.shape[1]
        places = prefixes_BxPxS.sum(axis=2, dtype=jnp.int32)[..., None] + jnp.arange(count)
        block, causal = jnp.eye(parts, dtype=bool), jnp.tril(jnp.ones((count, count), bool))
        own = (block[:, None, :, None] & causal[None, :, None, :]).reshape((parts * count,) * 2)
        seen = jnp.concatenate(
            [
                jnp.repeat(prefixes_BxPxS, count, axis=1),
                jnp.broadcast_to(own, (rows, *own.shape)),
            ],
            axis=2,
        )
        places = places.reshape(rows, parts * count)
        # The places of the prompt's tokens are those that they have in the longest part.
        before = _places(prefixes_BxPxS.any(axis=1))
        x = jnp.tile(self.embed(decoder_input_ids_BxU), (1, parts, 1))
        all_places = jnp.concatenate([before, places], axis=1)
        hidden, _ = self._attended(x, all_places, seen, True, encoded)
        return self.final_norm(hidden).reshape(rows, parts, count, -1)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> [..., V] float32."""
        if self.config.tie_word_embeddings:
            return self.shared.attend(hidden)
        return self.lm_head(hidden)

    def start_cache(self, encoded: Encoded, length: int) -> Cache:
        """The prompt's keys and values, and room for those of `length` steps."""

        def room(array: jax.Array) -> jax.Array:
            return jnp.pad(jnp.swapaxes(array, 1, 2), [(0, 0), (0, 0), (0, length), (0, 0)])

        return Cache(tuple(map(room, encoded.keys)), tuple(map(room, encoded.values)))

    def fill_cache(self, cache: Cache, slots_R: jax.Array, encoded: Encoded) -> Cache:
        """The cache with other prompts in some rows; arguments are those of `T5.fill_cache`."""

        def put(cached: jax.Array, new: jax.Array) -> jax.Array:
            new = jnp.swapaxes(new, 1, 2)
            return cached.at[slots_R, :, : new.shape[2]].set(new, mode="drop")

        return Cache(
            tuple(map(put, cache.keys, encoded.keys)), tuple(map(put, cache.values, encoded.values))
        )

    def decode_step(
        self,
        ids_B: jax.Array,
        time: jax.Array,
        age_B: jax.Array,
        input_mask_BxS: jax.Array,
        cache: Cache,
    ) -> tuple[jax.Array, Cache]:
        """One token a row; needs `scan_layers=False`. Arguments are those of `T5.decode_step`.

        Returns:
          [B, D], what `__call__` has at the rows' positions, and the cache for the next step.
        """
        prompt = input_mask_BxS.shape[1]
        room = cache.keys[0].shape[2] - prompt
        back_L = (time - jnp.arange(room)) % room  # How many steps before this one.
        seen = jnp.concatenate([input_mask_BxS, back_L <= age_B[:, None]], axis=1)
        place_B = input_mask_BxS.sum(axis=1) + age_B
        if self.config.sliding_window is not None:
            back = place_B[:, None] - _places(input_mask_BxS)
            back = jnp.concatenate([back, jnp.broadcast_to(back_L, (len(ids_B), room))], axis=1)
            seen &= back < self.config.sliding_window
        seen = seen[:, None, None]
        rotation = rotation_at(place_B[:, None], self.config)
        x, keys, values = self.embed(ids_B)[:, None], [], []
        for layer, key, value in zip(self.layers, cache.keys, cache.values, strict=True):  # pyright: ignore[reportArgumentType]
            x, key, value = layer.step(x, prompt + time % room, rotation, seen, key, value)
            keys.append(key)
            values.append(value)
        return self.final_norm(x)[:, 0], Cache(tuple(keys), tuple(values))

    def _run(
        self,
        x_BxQxD: jax.Array,
        mask_BxL: jax.Array,
        deterministic: bool,
        past: Encoded | None = None,
    ) -> tuple[jax.Array, Encoded]:
        """All layers at the last Q positions of L: [B, Q, D], and keys and values of each.

        The keys and values of positions before these are those of `past`.
        """
        count = x_BxQxD.shape[1]
        seen = jnp.tril(jnp.ones((mask_BxL.shape[1],) * 2, bool))[-count:] & mask_BxL[:, None, :]
        return self._attended(x_BxQxD, _places(mask_BxL), seen, deterministic, past)

    def _attended(
        self,
        x_BxQxD: jax.Array,
        places_BxL: jax.Array,
        seen: jax.Array,
        deterministic: bool,
        past: Encoded | None,
    ) -> tuple[jax.Array, Encoded]:
        """As `_run`, where `seen`, [B, Q, L] bool, and the places of all tokens are given."""
        places_BxQ = places_BxL[:, -x_BxQxD.shape[1] :]
        if self.config.sliding_window is not None:
            distance = places_BxQ[:, :, None] - places_BxL[:, None, :]
            seen &= distance < self.config.sliding_window
        x = pin_residual(x_BxQxD.astype(self.dtype))
        arguments = (rotation_at(places_BxQ, self.config), seen[:, None], deterministic)
        if self.scan_layers:
            x, (keys, values) = self.layers(x, *arguments, past)  # pyright: ignore[reportCallIssue]
            return x, Encoded(keys, values)
        found = []
        for i, layer in enumerate(self.layers):  # pyright: ignore[reportArgumentType]
            before = None if past is None else Encoded(past.keys[i], past.values[i])
            x, keys_values = layer(x, *arguments, before)
            found.append(keys_values)
        return x, Encoded(*zip(*found, strict=True))


def _longer(mask_BxS: jax.Array, count: int) -> jax.Array:
    """A mask with `count` positions more, all of them tokens."""
    return jnp.pad(mask_BxS, [(0, 0), (0, count)], constant_values=True)


def _places(mask_BxL: jax.Array) -> jax.Array:
    """[B, L] int32: how many tokens stand before; padding does not count."""
    return jnp.maximum(jnp.cumsum(mask_BxL, axis=1, dtype=jnp.int32) - 1, 0)
