"""Greedy decoding: one jitted function that encodes and then writes token by token.

Letters: B rows, S prompt tokens, G tokens at most of a generation.
"""

import dataclasses
from typing import Any

import flax.linen as nn
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
        config = student.config
        # While decoding there is one array a layer, updated in place; stacked ones would be copied.
        module = dataclasses.replace(student.module, scan_layers=False, remat="none")

        @jax.jit
        def generate(params: Any, input_ids_BxS: jax.Array, input_mask_BxS: jax.Array) -> jax.Array:
            params = layout.unroll(params)
            return _greedy(
                module,
                params,
                input_ids_BxS,
                input_mask_BxS,
                length=max_new_tokens,
                start_id=config.decoder_start_token_id,
                eos_id=student.tokenizer.eos_token_id,
                pad_id=student.tokenizer.pad_token_id,
            )

        self._generate = generate

    def __call__(
        self, params: Any, input_ids_BxS: jax.Array, input_mask_BxS: jax.Array
    ) -> jax.Array:
        """[B, G] int32: the generated tokens, EOS among them, and padding after it.

        Args:
          params: of the student.
          input_ids_BxS: int32 prompts.
          input_mask_BxS: bool, False at padding. A row without a token ends at once.
        """
        with sharding.use(self._mesh):
            return self._generate(params, input_ids_BxS, input_mask_BxS)


def _greedy(
    module: nn.Module,
    params: Any,
    input_ids_BxS: jax.Array,
    input_mask_BxS: jax.Array,
    *,
    length: int,
    start_id: int,
    eos_id: int,
    pad_id: int,
) -> jax.Array:
    variables = {"params": params}

    def run(method: str, *args: Any) -> Any:
        return module.apply(variables, *args, method=method)

    encoded = run("encode", input_ids_BxS, input_mask_BxS)
    rows = input_ids_BxS.shape[0]

    def going_on(carry: tuple) -> jax.Array:
        position, _, done_B, _, _ = carry
        return (position < length) & ~done_B.all()

    def one(carry: tuple) -> tuple:
        position, ids_B, done_B, written_GxB, cache = carry
        hidden, cache = run("decode_step", ids_B, position, input_mask_BxS, cache)
        ids_B = jnp.argmax(run("logits", hidden), axis=-1).astype(jnp.int32)
        ids_B = jnp.where(done_B, pad_id, ids_B)
        written_GxB = jax.lax.dynamic_update_index_in_dim(written_GxB, ids_B, position, 0)
        return position + 1, ids_B, done_B | (ids_B == eos_id), written_GxB, cache

    start = (
        jnp.zeros((), jnp.int32),
        jnp.full(rows, start_id, jnp.int32),
        ~input_mask_BxS.any(axis=1),
        jnp.full((length, rows), pad_id, jnp.int32),
        run("start_cache", encoded, length),
    )
    return jax.lax.while_loop(going_on, one, start)[3].T
