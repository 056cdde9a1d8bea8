"""The answerer θw: the answer's loss given the question and a masked rationale prefix (Eq. 5).

Letters: B rows (an example with one prefix and one mask), S question tokens, R rationale tokens,
A answer tokens, D width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpod_jax.models import layout
from kpod_jax.training import losses
from kpod_jax.weighting.answerer_batch import AnswererBatch

Params = Any


@dataclasses.dataclass(frozen=True)
class Answerer:
    """A pre-trained model that answers from the question and a masked prefix.

    Attributes:
      module: `models.t5.T5`, or a module with its methods.
      mask_id: token whose embedding replaces masked tokens.
      start_id: first input of the decoder.
      eos_id: token appended to the prefix, as it ends every input in pre-training. It also marks
        the end of the prefix, which relative positions alone do not. None: nothing is appended.
      causal: whether a token's encoding is independent of later tokens. If so, all prefixes of a
        rationale are encoded at once, else one by one. Requires eos_id None.
    """

    module: nn.Module
    mask_id: int
    start_id: int
    eos_id: int | None
    causal: bool = False

    def __post_init__(self) -> None:
        if self.causal and self.eos_id is not None:
            raise ValueError(
                "causal=True encodes all prefixes at once, without EOS: expected eos_id=None"
            )

    def split(self, params: Params) -> tuple[Params, Params]:
        """Splits parameters into trained ones (only the adapters with LoRA) and frozen ones."""
        has_adapters = getattr(self.module, "lora", None) is not None
        return layout.split_adapters(params) if has_adapters else (params, {})

    def losses(
        self,
        params: Params,
        batch: AnswererBatch,
        keep_BxR: jax.Array,
        prefix_B: jax.Array,
    ) -> jax.Array:
        """Returns -Σ_j log P(y_j | y_<j, r[m]_<k, x; θw) of every row (Eq. 5, one prefix per row).

        Tokens are masked in embedding space, m Emb(r_j) + (1 - m) Emb(mask), so the gradient of the
        answer's loss reaches m and, through it, the generator.

        Args:
          params: the answerer's parameters.
          batch: the rows.
          keep_BxR: float32 m_j, 1 kept, 0 masked.
          prefix_B: int32 k: the encoder sees the first k rationale tokens, masked or not.

        Returns:
          [B] float32, nats.
        """
        return self.prefix_losses(params, batch, keep_BxR, prefix_B[:, None])[:, 0]

    def prefix_losses(
        self,
        params: Params,
        batch: AnswererBatch,
        keep_BxR: jax.Array,
        prefix_BxP: jax.Array,
    ) -> jax.Array:
        """Returns the `losses` of P prefixes per row, all under the row's one mask, [B, P] float32.

        A causal answerer encodes each rationale once for all prefixes.
        """
        count = prefix_BxP.shape[1]
        if not self.causal and count > 1:
            keep = jnp.repeat(keep_BxR, count, axis=0)
            rows = batch.repeat(count)
            return self.losses(params, rows, keep, prefix_BxP.ravel()).reshape(prefix_BxP.shape)
        variables = {"params": params}

        def apply(method: str, *args: Any, **options: Any) -> jax.Array:
            return self.module.apply(variables, *args, method=method, **options)  # pyright: ignore

        if batch.reading is None:
            tokens_BxR = batch.rationale
            length_BxP = jnp.minimum(prefix_BxP, batch.rationale_mask.sum(axis=1)[:, None])
        else:
            tokens_BxR, keep_BxR = batch.reading.tokens, batch.reading.keep(keep_BxR)
            length_BxP = batch.reading.lengths(prefix_BxP)
        mask_embedding_D = apply("embed", jnp.array(self.mask_id))
        rationale_BxRxD = apply("embed", tokens_BxR)
        keep = keep_BxR[..., None].astype(rationale_BxRxD.dtype)
        rationale_BxRxD = keep * rationale_BxRxD + (1 - keep) * mask_embedding_D
        if self.eos_id is not None:
            # EOS directly follows the prefix, so there is one more position than rationale tokens.
            rationale_BxRxD = jnp.pad(rationale_BxRxD, [(0, 0), (0, 1), (0, 0)])
            ends = jnp.arange(rationale_BxRxD.shape[1]) == length_BxP
            end_D = apply("embed", jnp.array(self.eos_id))
            rationale_BxRxD = jnp.where(ends[..., None], end_D, rationale_BxRxD)
            length_BxP += 1
        embeddings = jnp.concatenate([apply("embed", batch.question), rationale_BxRxD], axis=1)
        seen = jnp.arange(rationale_BxRxD.shape[1]) < length_BxP[..., None]
        question_mask = jnp.broadcast_to(
            batch.question_mask[:, None], (*seen.shape[:2], batch.question.shape[1])
        )
        visible_BxPxS = jnp.concatenate([question_mask, seen], axis=2)
        encoded = apply(
            "encode",
            None,
            visible_BxPxS.any(axis=1),
            embeddings_BxSxD=embeddings,
            causal=self.causal,
        )
        inputs = jnp.roll(batch.answer, 1, axis=1).at[:, 0].set(self.start_id)
        hidden = apply("decode_prefixes", encoded, visible_BxPxS, inputs)
        answers = jnp.repeat(batch.answer, count, axis=0)
        answer_mask = jnp.repeat(batch.answer_mask, count, axis=0)
        nll = losses.token_losses(
            hidden.reshape(-1, *hidden.shape[2:]),
            answers,
            answer_mask,
            lambda h: apply("logits", h),
        )
        return nll.sum(axis=1).reshape(prefix_BxP.shape)
