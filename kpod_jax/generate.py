"""Greedy decoding: one jitted function that encodes and then writes token by token.

Letters: B rows, S prompt tokens, G tokens at most of a generation.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from kpod_jax import sharding
from kpod_jax.models import layout
from kpod_jax.models.student import Student


class Generator:
    """Greedy generations of a student, with keys and values kept in preallocated arrays.

    It is compiled once for each shape of prompts, not for each batch, and stops when the last row
    of a batch has ended.
    """

    def __init__(self, student: Student, mesh: Mesh, max_new_tokens: int) -> None:
        """Compiles nothing yet.

        Args:
          student: whose module decodes.
          mesh: that the parameters lie on.
          max_new_tokens: G.
        """
        self._mesh = mesh
        self._generate = make_generate(student, max_new_tokens)

    def __call__(
        self, params: Any, input_ids_BxS: jax.Array, input_mask_BxS: jax.Array
    ) -> jax.Array:
        """[B, G] int32: the generated tokens, EOS among them, and padding after it.

        Args:
          params: of the student.
          input_ids_BxS: int32 prompts.
          input_mask_BxS: bool, False at padding. A row without a token is padding alone.
        """
        with sharding.use(self._mesh):
            return self._generate(params, input_ids_BxS, input_mask_BxS)


def make_generate(student: Student, max_new_tokens: int) -> Any:
    """The jitted function of a `Generator`: (params, ids, mask) -> [B, G] int32."""
    encoder = student.module
    # While decoding there is one cache a layer, updated in place; stacked ones would be copied.
    decoder = encoder.clone(scan_layers=False, remat="none")
    start_id = student.config.decoder_start_token_id
    eos_id, pad_id = student.tokenizer.eos_token_id, student.tokenizer.pad_token_id

    @jax.jit
    def generate(params: Any, input_ids_BxS: jax.Array, input_mask_BxS: jax.Array) -> jax.Array:
        params = _cast(params, encoder.dtype)
        encoded = encoder.apply({"params": params}, input_ids_BxS, input_mask_BxS, method="encode")
        variables = {"params": params | layout.unroll({"decoder": params["decoder"]})}

        def decode(method: str, *args: Any) -> Any:
            return decoder.apply(variables, *args, method=method)

        def going_on(carry: tuple) -> jax.Array:
            position, _, done_B, _, _ = carry
            return (position < max_new_tokens) & ~done_B.all()

        def write_one(carry: tuple) -> tuple:
            position, ids_B, done_B, written_GxB, cache = carry
            hidden, cache = decode("decode_step", ids_B, position, input_mask_BxS, cache)
            ids_B = jnp.argmax(decode("logits", hidden), axis=-1).astype(jnp.int32)
            ids_B = jnp.where(done_B, pad_id, ids_B)
            written_GxB = jax.lax.dynamic_update_index_in_dim(written_GxB, ids_B, position, 0)
            return position + 1, ids_B, done_B | (ids_B == eos_id), written_GxB, cache

        rows = input_ids_BxS.shape[0]
        start = (
            jnp.zeros((), jnp.int32),
            jnp.full(rows, start_id, jnp.int32),
            ~input_mask_BxS.any(axis=1),
            jnp.full((max_new_tokens, rows), pad_id, jnp.int32),
            decode("start_cache", encoded, max_new_tokens),
        )
        return jax.lax.while_loop(going_on, write_one, start)[3].T

    return generate


def _cast(params: Any, dtype: Any) -> Any:
    """Factors of matrix products in the compute type, so that the loop need not cast them again."""
    return layout.unflatten(
        {
            path: leaf.astype(dtype) if path.endswith(("/kernel", "/embedding")) else leaf
            for path, leaf in layout.flatten(params).items()
        }
    )
