"""T5 in Flax Linen: v1.0, v1.1, Flan and mT5, for training and incremental decoding.

Letters: B batch, S source positions, U target positions, P prefixes, R replaced rows, D model
width, V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpod_jax.models.layers import Dtype, Embedding, Head, LoRAConfig
from kpod_jax.models.t5_config import T5Config
from kpod_jax.models.t5_layers import Cache, Stack


class T5(nn.Module):
    """An encoder-decoder model.

    Attributes:
      config: the architecture.
      dtype: of activations and matrix products; softmax and norms are computed in float32.
      param_dtype: of parameters.
      remat: what the backward pass recomputes: "none"; "dots", everything except the outputs of
        projections; "full", everything inside a layer.
      scan_layers: True scans over stacked parameters (`layers`), which compiles fast; False
        unrolls the layers (`layers_0`, ...), which runs faster if there are few.
      lora: adapters, or None.
      attention: "xla", "cudnn" or "blocks"; see `layers.Attention`.
    """

    config: T5Config
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32
    remat: str = "none"
    scan_layers: bool = True
    lora: LoRAConfig | None = None
    attention: str = "xla"

    def setup(self) -> None:
        c = self.config
        self.shared = Embedding(c.vocab_size, c.d_model, self.dtype, self.param_dtype)
        shared = (c, self.dtype, self.param_dtype, self.remat, self.scan_layers, self.lora)
        self.encoder = Stack(*shared, self.attention, is_decoder=False)
        self.decoder = Stack(*shared, self.attention, is_decoder=True)
        if not c.tie_word_embeddings:
            std = c.d_model**-0.5
            self.lm_head = Head(c.d_model, c.vocab_size, std, self.dtype, self.param_dtype)

    def __call__(
        self,
        input_ids_BxS: jax.Array,
        input_mask_BxS: jax.Array,
        decoder_input_ids_BxU: jax.Array,
        deterministic: bool = True,
    ) -> jax.Array:
        """Returns the decoder's output [B, U, D]; see `encode` and `decode`."""
        encoded = self.encode(input_ids_BxS, input_mask_BxS, deterministic=deterministic)
        hidden = self.decode(
            encoded, input_mask_BxS, decoder_input_ids_BxU, deterministic=deterministic
        )
        if self.is_initializing():
            self.logits(hidden[:, :1])
        return hidden

    def embed(self, ids: jax.Array) -> jax.Array:
        """Maps int ids [...] to embeddings [..., D]; encoder and decoder share the table."""
        return self.shared(ids)

    def encode(
        self,
        input_ids_BxS: jax.Array | None,
        input_mask_BxS: jax.Array,
        *,
        embeddings_BxSxD: jax.Array | None = None,
        causal: bool = False,
        deterministic: bool = True,
    ) -> jax.Array:
        """Runs the encoder.

        Args:
          input_ids_BxS: int, or None if the embeddings are given.
          input_mask_BxS: bool, True at tokens, False at padding.
          embeddings_BxSxD: used instead of `embed(input_ids_BxS)`.
          causal: whether a token sees only itself and earlier tokens, so that the output at a
            prefix equals that of the prefix alone. No T5 is pre-trained this way: fine-tune it.
          deterministic: False applies dropout, with the RNG collection "dropout".

        Returns:
          [B, S, D].
        """
        if (input_ids_BxS is None) == (embeddings_BxSxD is None):
            raise TypeError("Expected exactly one of input_ids_BxS and embeddings_BxSxD.")
        x = self.embed(input_ids_BxS) if embeddings_BxSxD is None else embeddings_BxSxD  # pyright: ignore[reportArgumentType]
        mask = input_mask_BxS[:, None, None, :]
        if causal:
            mask &= jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
        return self.encoder(x.astype(self.dtype), mask, None, None, deterministic)

    def decode(
        self,
        encoded_BxSxD: jax.Array,
        input_mask_BxS: jax.Array,
        decoder_input_ids_BxU: jax.Array,
        *,
        deterministic: bool = True,
    ) -> jax.Array:
        """Returns the decoder's output [B, U, D], after the final norm, scaled for a tied head."""
        x = self.embed(decoder_input_ids_BxU)
        mask = input_mask_BxS[:, None, None, :]
        return self._scale(self.decoder(x, None, encoded_BxSxD, mask, deterministic))

    def decode_prefixes(
        self,
        encoded_BxSxD: jax.Array,
        prefixes_BxPxS: jax.Array,
        decoder_input_ids_BxU: jax.Array,
    ) -> jax.Array:
        """Runs `decode` after each of P prefixes of a causally encoded input.

        Args:
          encoded_BxSxD: from `encode` with `causal=True`, shared by all prefixes.
          prefixes_BxPxS: bool, the tokens of each prefix.
          decoder_input_ids_BxU: int, the same after every prefix.

        Returns:
          [B, P, U, D].
        """
        rows, count, _ = prefixes_BxPxS.shape
        hidden = self.decode(
            jnp.repeat(encoded_BxSxD, count, axis=0),
            prefixes_BxPxS.reshape(rows * count, -1),
            jnp.repeat(decoder_input_ids_BxU, count, axis=0),
        )
        return hidden.reshape(rows, count, *hidden.shape[1:])

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Maps [..., D] from `decode` to float32 logits [..., V]."""
        if self.config.tie_word_embeddings:
            return self.shared.attend(hidden)
        return self.lm_head(hidden)

    def start_cache(self, encoded_BxSxD: jax.Array, length: int) -> Cache:
        """Returns an empty cache for `length` steps, with the encoder's keys and values.

        Needs `scan_layers=False`, because decoding updates one array per layer in place. `unroll`
        in `models/layout.py` converts the parameters.
        """
        return self.decoder.start_cache(encoded_BxSxD, length)

    def fill_cache(self, cache: Cache, slots_R: jax.Array, encoded_RxSxD: jax.Array) -> Cache:
        """Replaces the inputs of some rows; `decode_step` masks what these rows generated before.

        Args:
          cache: with B rows.
          slots_R: int, the rows to replace; inputs with a slot of B or more are ignored.
          encoded_RxSxD: from `encode`, with the cache's S.

        Returns:
          The updated cache.
        """
        return self.decoder.fill_cache(cache, slots_R, encoded_RxSxD)

    def decode_step(
        self,
        ids_B: jax.Array,
        time: jax.Array,
        age_B: jax.Array,
        input_mask_BxS: jax.Array,
        cache: Cache,
    ) -> tuple[jax.Array, Cache]:
        """Decodes one token per row. Rows may have started at different times.

        Args:
          ids_B: int, the decoder input at each row's position `age_B`.
          time: scalar int, the step; increases by one with every call on the same cache.
          age_B: int, each row's position, from 0 to less than the cache's length.
          input_mask_BxS: as in `encode`.
          cache: from `start_cache`, `fill_cache` or the previous step.

        Returns:
          [B, D], what `decode` returns at the rows' positions, and the cache for the next step.
        """
        x = self.embed(ids_B)[:, None]
        x, cache = self.decoder.step(x, time, age_B, input_mask_BxS, cache)
        return self._scale(x)[:, 0], cache

    def _scale(self, hidden: jax.Array) -> jax.Array:
        scale = self.config.d_model**-0.5 if self.config.tie_word_embeddings else 1.0
        return hidden * scale
