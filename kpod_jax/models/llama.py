"""The LLaMA family in Flax Linen, with the interface of an encoder-decoder.

The prompt takes the role of T5's encoder input and the target that of its decoder output; `encode`
returns the prompt's keys and values. Batches, losses and decoding are therefore the same as T5's.
Padding may be anywhere, because positions count only tokens.

Letters: B batch, S prompt positions, U target positions, L = S + U, Q queries, P prompt prefixes,
G positions to generate, M key and value heads, H head width, D model width, V vocabulary, R rows.
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
from kpod_jax.models.llama_layers import STD, Encoded, Layer, make_norm, rotation_at
from kpod_jax.models.llama_traits import LayerKind
from kpod_jax.utils.errors import UserError


class Cache(NamedTuple):
    """Keys and values of every layer, [B, M, S + G, H], heads before positions.

    The prompt takes the first S positions; step t is stored at position t mod G after them.
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
      layer_class: class of the layers, for subclasses to override; None means `Layer`.
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
                in_axes=(*[nn.broadcast] * 3, 0, 0, nn.broadcast),  # pyright: ignore
                length=c.num_hidden_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            self.layers = layer(*arguments)
        else:
            self.layers = [layer(*arguments) for _ in range(c.num_hidden_layers)]
        self.final_norm = make_norm(norm, c, c.hidden_size, *types)
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
        """Computes the hidden states at the decoder inputs.

        Args:
          input_ids_BxS: int, prompts without their last token.
          input_mask_BxS: bool, False at padding, which may be anywhere.
          decoder_input_ids_BxU: int, the prompt's last token, then the target without its last.
          deterministic: False applies dropout, with the RNG collection "dropout".
          segments_BxU: int, the segment of each token in rows that pack several texts: tokens see
            and count only tokens of the same segment. Prompts are then part of the decoder inputs,
            and S is 0.

        Returns:
          [B, U, D], after the final norm.
        """
        if segments_BxU is not None:
            x = self.embed(decoder_input_ids_BxU)
            seen = jnp.tril(segments_BxU[:, :, None] == segments_BxU[:, None, :])
            # The number of earlier tokens of the same text.
            positions = seen.sum(axis=2, dtype=jnp.int32) - 1
            arguments = (x, positions, seen, deterministic, None, segments_BxU)
            return self.final_norm(self._run_masked(*arguments)[0])
        ids = jnp.concatenate([input_ids_BxS, decoder_input_ids_BxU], axis=1)
        mask = _extend_mask(input_mask_BxS, decoder_input_ids_BxU.shape[1])
        hidden, _ = self._run(self.embed(ids), mask, deterministic)
        hidden = self.final_norm(hidden[:, input_ids_BxS.shape[1] :])
        if self.is_initializing():
            self.logits(hidden[:, :1])
        return hidden

    def embed(self, ids: jax.Array) -> jax.Array:
        """Maps int ids [...] to embeddings [..., D]."""
        x = self.shared(ids)
        if self.config.traits.scales_embeddings:
            x *= jnp.asarray(self.config.hidden_size**0.5, x.dtype)
        return x

    def encode(
        self,
        input_ids_BxS: jax.Array | None,
        input_mask_BxS: jax.Array,
        *,
        embeddings_BxSxD: jax.Array | None = None,
        causal: bool = True,
        deterministic: bool = True,
    ) -> Encoded:
        """Returns the prompts' keys and values; arguments as in `T5.encode`, but always causal."""
        del causal
        if (input_ids_BxS is None) == (embeddings_BxSxD is None):
            raise TypeError("Expected exactly one of input_ids_BxS and embeddings_BxSxD.")
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
        """Returns the [B, U, D] of `__call__`, given the keys and values from `encode`."""
        mask = _extend_mask(input_mask_BxS, decoder_input_ids_BxU.shape[1])
        hidden, _ = self._run(self.embed(decoder_input_ids_BxU), mask, deterministic, encoded)
        return self.final_norm(hidden)

    def decode_prefixes(
        self,
        encoded: Encoded,
        prefixes_BxPxS: jax.Array,
        decoder_input_ids_BxU: jax.Array,
    ) -> jax.Array:
        """Runs `decode` after each of P prefixes of a prompt, in a single pass.

        The targets of all prefixes are concatenated. Each target sees only its prefix and itself,
        at the positions right after its prefix.

        Args:
          encoded: from `encode`, of the whole prompt.
          prefixes_BxPxS: bool, the tokens of each prefix. A prefix must have all tokens before its
            last one, since a token's keys and values depend on all earlier tokens.
          decoder_input_ids_BxU: int, as in `decode`, the same after every prefix.

        Returns:
          [B, P, U, D].
        """
        rows, prefixes, _ = prefixes_BxPxS.shape
        count = decoder_input_ids_BxU.shape[1]
        positions = prefixes_BxPxS.sum(axis=2, dtype=jnp.int32)[..., None] + jnp.arange(count)
        block, causal = jnp.eye(prefixes, dtype=bool), jnp.tril(jnp.ones((count, count), bool))
        targets = block[:, None, :, None] & causal[None, :, None, :]
        targets = targets.reshape((prefixes * count,) * 2)
        seen = jnp.concatenate(
            [
                jnp.repeat(prefixes_BxPxS, count, axis=1),
                jnp.broadcast_to(targets, (rows, *targets.shape)),
            ],
            axis=2,
        )
        positions = positions.reshape(rows, prefixes * count)
        # The prompt's tokens have the positions that they have in the longest prefix.
        prompt_positions = _positions(prefixes_BxPxS.any(axis=1))
        x = jnp.tile(self.embed(decoder_input_ids_BxU), (1, prefixes, 1))
        all_positions = jnp.concatenate([prompt_positions, positions], axis=1)
        hidden, _ = self._run_masked(x, all_positions, seen, True, encoded)
        return self.final_norm(hidden).reshape(rows, prefixes, count, -1)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Maps [..., D] to float32 logits [..., V]."""
        if self.config.tie_word_embeddings:
            return self.shared.attend(hidden)
        return self.lm_head(hidden)

    def start_cache(self, encoded: Encoded, length: int) -> Cache:
        """Returns a cache with the prompt's keys and values, and space for `length` steps."""

        def extend(array: jax.Array) -> jax.Array:
            return jnp.pad(jnp.swapaxes(array, 1, 2), [(0, 0), (0, 0), (0, length), (0, 0)])

        return Cache(tuple(map(extend, encoded.keys)), tuple(map(extend, encoded.values)))

    def fill_cache(self, cache: Cache, slots_R: jax.Array, encoded: Encoded) -> Cache:
        """Returns the cache with the prompts of some rows replaced; see `T5.fill_cache`."""

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
        """Decodes one token per row; needs `scan_layers=False`. Arguments as in `T5.decode_step`.

        Returns:
          [B, D], what `__call__` returns at the rows' positions, and the cache for the next step.
        """
        prompt = input_mask_BxS.shape[1]
        length = cache.keys[0].shape[2] - prompt
        distance_G = (time - jnp.arange(length)) % length  # In steps before this one.
        seen = jnp.concatenate([input_mask_BxS, distance_G <= age_B[:, None]], axis=1)
        position_B = input_mask_BxS.sum(axis=1) + age_B
        distance = position_B[:, None] - _positions(input_mask_BxS)
        steps = jnp.broadcast_to(distance_G, (len(ids_B), length))
        distance = jnp.concatenate([distance, steps], axis=1)
        of_kind = self._of_kinds(position_B[:, None], distance, seen)
        x, keys, values = self.embed(ids_B)[:, None], [], []
        layers = zip(self.layers, self.config.layer_kinds, cache.keys, cache.values, strict=True)  # pyright: ignore[reportArgumentType]
        for layer, kind, key, value in layers:
            rotation, seen_BxL = of_kind[kind]
            seen = seen_BxL[:, None, None]
            x, key, value = layer.step(x, prompt + time % length, rotation, seen, key, value)
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
        """Runs all layers at the last Q of L positions.

        Args:
          x_BxQxD: embeddings.
          mask_BxL: bool, False at padding.
          deterministic: whether to disable dropout.
          past: keys and values of the first L - Q positions; None if L = Q.

        Returns:
          [B, Q, D], and the keys and values of the Q positions in every layer.
        """
        count = x_BxQxD.shape[1]
        seen = jnp.tril(jnp.ones((mask_BxL.shape[1],) * 2, bool))[-count:] & mask_BxL[:, None, :]
        segments = mask_BxL.astype(jnp.int32) if past is None else None
        arguments = (x_BxQxD, _positions(mask_BxL), seen, deterministic, past, segments)
        return self._run_masked(*arguments)

    def _run_masked(
        self,
        x_BxQxD: jax.Array,
        positions_BxL: jax.Array,
        seen: jax.Array,
        deterministic: bool,
        past: Encoded | None,
        segments_BxL: jax.Array | None = None,
    ) -> tuple[jax.Array, Encoded]:
        """Does the same as `_run`, given `seen`, [B, Q, L] bool, and the tokens' positions.

        `segments_BxL` may say what `seen` says, see `layers.Attention`.
        """
        positions_BxQ = positions_BxL[:, -x_BxQxD.shape[1] :]
        distance = positions_BxQ[:, :, None] - positions_BxL[:, None, :]
        of_kind = self._of_kinds(positions_BxQ, distance, seen)
        x = pin_residual(x_BxQxD.astype(self.dtype))
        kinds = self.config.layer_kinds
        # The kernel has no windows.
        segments = segments_BxL if all(kind.window is None for kind in kinds) else None
        if self.scan_layers:
            rotations, masks = (jnp.stack(parts) for parts in zip(*of_kind.values(), strict=True))
            numbers = jnp.asarray([list(of_kind).index(kind) for kind in kinds])
            if len(of_kind) == 1:
                rotations, masks, numbers = rotations[0], masks[0], None
            arguments = (rotations, jnp.expand_dims(masks, -3), deterministic, past, numbers)
            arguments = (*arguments, segments)
            x, (keys, values) = self.layers(x, *arguments)  # pyright: ignore[reportCallIssue]
            return x, Encoded(keys, values)
        keys_values = []
        for i, layer in enumerate(self.layers):  # pyright: ignore[reportArgumentType]
            layer_past = None if past is None else Encoded(past.keys[i], past.values[i])
            rotation, mask = of_kind[kinds[i]]
            arguments = (rotation, mask[:, None], deterministic, layer_past, None, segments)
            x, layer_keys_values = layer(x, *arguments)
            keys_values.append(layer_keys_values)
        return x, Encoded(*zip(*keys_values, strict=True))

    def _of_kinds(
        self, positions: jax.Array, distance: jax.Array, seen: jax.Array
    ) -> dict[LayerKind, tuple[jax.Array, jax.Array]]:
        """Returns the rotation of the queries, and what they see, for each kind of layer.

        Args:
          positions: [B, Q] int, the queries' positions.
          distance: [B, ..., L] int, from each key to the query.
          seen: the same shape, bool, what queries see without a window.
        """
        maximum = self.config.rope_scaling.max_length
        if maximum is not None and distance.shape[-1] > maximum:
            raise UserError(
                f"A sequence of {distance.shape[-1]} tokens: longer ones than {maximum} "
                "(original_max_position_embeddings) would need this model's long_factor, which is "
                "not supported. Lower student.max_question_tokens and student.max_target_tokens."
            )
        return {
            kind: (
                rotation_at(positions, self.config, kind.rope),
                seen if kind.window is None else seen & (distance < kind.window),
            )
            for kind in dict.fromkeys(self.config.layer_kinds)
        }


def _extend_mask(mask_BxS: jax.Array, count: int) -> jax.Array:
    """Appends `count` token positions to a mask."""
    return jnp.pad(mask_BxS, [(0, 0), (0, count)], constant_values=True)


def _positions(mask_BxL: jax.Array) -> jax.Array:
    """Returns [B, L] int32, the number of earlier tokens; padding does not count."""
    return jnp.maximum(jnp.cumsum(mask_BxL, axis=1, dtype=jnp.int32) - 1, 0)
