"""The answerer θw: the answer's loss, given question and masked prefix of the rationale (Eq. 5).

Letters: B rows (an example with one prefix and one mask), S question tokens, R rationale tokens,
A answer tokens, D width.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from kpod_jax import losses

Params = Any


@flax.struct.dataclass
class Problems:
    """Rows for the answerer; questions are padded on their left, the others on their right.

    T5 knows relative positions alone, so padding must not come between question and rationale.

    Attributes:
      question: [B, S] int32.
      question_mask: [B, S] bool.
      rationale: [B, R] int32.
      rationale_mask: [B, R] bool.
      step_ends: [B, R] bool, True at the last token of every step.
      answer: [B, A] int32, with EOS.
      answer_mask: [B, A] bool.
    """

    question: jax.Array
    question_mask: jax.Array
    rationale: jax.Array
    rationale_mask: jax.Array
    step_ends: jax.Array
    answer: jax.Array
    answer_mask: jax.Array

    def repeat(self, count: int) -> "Problems":
        """Each row `count` times, one after the other."""
        return jax.tree.map(lambda array: jnp.repeat(array, count, axis=0), self)


@dataclasses.dataclass(frozen=True)
class Answerer:
    """A pre-trained model that answers from question and masked prefix.

    Attributes:
      module: `models.t5.T5`, or one with its methods.
      mask_id: token whose embedding stands for a masked token.
      start_id: what the decoder begins with.
      eos_id: what follows the prefix, as it ends every input that the model was trained on. It also
        tells where the prefix ends, which relative positions alone do not. None: nothing follows.
    """

    module: nn.Module
    mask_id: int
    start_id: int
    eos_id: int | None

    def losses(
        self,
        params: Params,
        problems: Problems,
        keep_BxR: jax.Array,
        prefix_B: jax.Array,
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """-Σ_j log P(y_j | y_<j, r[m]_<k, x; θw) of every row (Eq. 5, one prefix a row).

        A token is masked in embedding space, m Emb(r_j) + (1 - m) Emb(mask), so that the gradient
        of the answer's loss reaches m and through it the generator.

        Args:
          params: of the answerer.
          problems: rows.
          keep_BxR: float32 m_j, 1 kept, 0 masked.
          prefix_B: int32 k: the encoder sees the first k rationale tokens, masked or not.
          dropout_key: turns the model's dropout on.

        Returns:
          [B] float32, nats.
        """
        variables = {"params": params}

        def run(method: str, *args: Any, **options: Any) -> jax.Array:
            return self.module.apply(variables, *args, method=method, **options)  # pyright: ignore

        mask_embedding_D = run("embed", jnp.array(self.mask_id))
        rationale_BxRxD = run("embed", problems.rationale)
        keep = keep_BxR[..., None].astype(rationale_BxRxD.dtype)
        rationale_BxRxD = keep * rationale_BxRxD + (1 - keep) * mask_embedding_D
        prefix_B = jnp.minimum(prefix_B, problems.rationale_mask.sum(axis=1))
        length_B = prefix_B
        if self.eos_id is not None:
            # It stands right behind the prefix, so there is one place more than rationale tokens.
            rationale_BxRxD = jnp.pad(rationale_BxRxD, [(0, 0), (0, 1), (0, 0)])
            ends = jnp.arange(rationale_BxRxD.shape[1]) == prefix_B[:, None]
            end_D = run("embed", jnp.array(self.eos_id))
            rationale_BxRxD = jnp.where(ends[..., None], end_D, rationale_BxRxD)
            length_B = prefix_B + 1
        embeddings = jnp.concatenate([run("embed", problems.question), rationale_BxRxD], axis=1)
        seen = jnp.arange(rationale_BxRxD.shape[1]) < length_B[:, None]
        visible = jnp.concatenate([problems.question_mask, seen], axis=1)
        options: dict[str, Any] = {"deterministic": dropout_key is None}
        if dropout_key is not None:
            options["rngs"] = {"dropout": dropout_key}
        encoded = run("encode", None, visible, embeddings_BxSxD=embeddings, **options)
        inputs = jnp.roll(problems.answer, 1, axis=1).at[:, 0].set(self.start_id)
        hidden = run("decode", encoded, visible, inputs, **options)
        nll = losses.token_losses(
            hidden, problems.answer, problems.answer_mask, lambda h: run("logits", h)
        )
        return nll.sum(axis=1)
