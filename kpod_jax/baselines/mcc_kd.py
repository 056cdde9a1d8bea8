"""MCC-KD (Chen et al., Findings of EMNLP 2023): rationales of one question agree on its answer.

Of a question's rationales the most diverse are kept, by the Jaccard similarity of their N-grams.
Each step shows two of them side by side. Besides the cross entropy of both, the distributions of
the answer's tokens after either are pulled together by the Kullback-Leibler divergence in both
directions: L = L_CE + λ (KL(P ‖ Q) + KL(Q ‖ P)) / 2.

Letters: N examples, B rows, U target positions, A positions of the answer sentence, D, V.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kpod_jax.baselines.protocol import Example, Method, Objective, row_layout_errors
from kpod_jax.data import pairs, sources
from kpod_jax.data.batches import Batch
from kpod_jax.data.buckets import padded, round_up
from kpod_jax.data.records import Ragged, Record
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.training import losses
from kpod_jax.training.forward import hidden_states


class MccKd(Method):
    """Diverse rationales of each question, in pairs."""

    keys = ("consistency_weight", "diverse_rationales", "ngram")

    @classmethod
    def config_errors(cls, config: Any) -> list[str]:
        """Pairs take two rationales of a question, and two rows of a part of a batch."""
        data, distill, found = config.data, config.distill, row_layout_errors(config)
        several = f"several rationales of a question for {config.method}, which compares them"
        if data.name in sources.PUBLISHED and not data.rationales:
            found.append(
                f"data.rationales='': expected a teacher's file with {several}, such as "
                "--mode=teach writes with teacher.samples above 1"
            )
        elif data.rationales_per_question == 1 and (data.rationales or data.name == "arithmetic"):
            found.append(f"data.rationales_per_question=1: expected {several}")
        if distill.batch_size % (2 * distill.micro_batches):
            found.append(
                f"distill.batch_size={distill.batch_size}: expected a multiple of 2 times "
                f"distill.micro_batches={distill.micro_batches}, as rows are compared in pairs"
            )
        return found

    def examples(self, records: Sequence[Record]) -> list[Example]:
        """The kept rationales, grouped by question."""
        options = self.setting.options
        by_question: dict[str, list[Record]] = {}
        for record in records:
            by_question.setdefault(f"{record.question}\n{record.answer}", []).append(record)
        return [
            Example(own[i], self.prompt, group=own[0].id)
            for own in by_question.values()
            for i in diverse(
                [record.rationale for record in own],
                options["diverse_rationales"],
                options["ngram"],
            )
        ]

    def objective(self, tokenized: TokenizedSet, examples: Sequence[Example]) -> Objective:
        """Cross entropy and consistency."""
        answers = _answer_tokens(tokenized)
        groups = pairs.groups_of([example.group for example in examples])
        # Both terms are means over tokens: those of all targets, and those of the answers.
        tokens = pairs.expected(tokenized.targets.lengths, groups)
        share = tokens / (pairs.expected(answers.lengths, groups) / 2)
        weight = self.setting.options["consistency_weight"] * share
        return Objective(
            functools.partial(consistency_loss, weight=weight),
            functools.partial(_answer_arrays, tokenized, answers),
            pairs=True,
        )


def jaccard(one: str, other: str, n: int) -> float:
    """Shared N-grams of words as a part of all of both, in [0, 1]; short texts are one N-gram."""
    a, b = _ngrams(one, n), _ngrams(other, n)
    return len(a & b) / len(a | b)


def diverse(texts: Sequence[str], count: int, n: int) -> list[int]:
    """Chooses texts that are little alike: the first, then ever the one least like the chosen.

    Args:
      texts: at least one.
      count: most that are chosen.
      n: of the N-grams.

    Returns:
      Their numbers, rising. A text is as like the chosen as it is like the most alike of them; of
      equals the first is chosen.
    """
    chosen, rest = [0], list(range(1, len(texts)))
    likeness = [jaccard(texts[0], text, n) for text in texts]
    while rest and len(chosen) < count:
        best = min(rest, key=lambda i: likeness[i])
        chosen.append(best)
        rest.remove(best)
        likeness = [
            max(old, jaccard(texts[best], text, n))
            for old, text in zip(likeness, texts, strict=True)
        ]
    return sorted(chosen)


def consistency_loss(
    module: Any, params: Any, batch: Any, dropout_key: jax.Array | None = None, *, weight: float
) -> tuple[jax.Array, jax.Array]:
    """Σ weight · nll + `weight` · Σ divergence over the answers' positions, and Σ nll.

    Args:
      module: the student.
      params: its parameters.
      batch: rows 2 k and 2 k + 1 are of one question; "answer_places" [B, A] int32 are positions
        of the answer sentence, and "compared" [B, A] bool says which of them count, alike for both
        rows of a pair.
      dropout_key: or None.
      weight: λ times the tokens of a pair's targets for each of its compared positions.
    """
    hidden, head = hidden_states(module, params, batch, dropout_key=dropout_key)
    total, nll = losses.weighted_token_losses(
        hidden, batch["targets"], batch["supervised"], batch["loss_weights"], head
    )
    hidden_BxAxD = jnp.take_along_axis(hidden, batch["answer_places"][..., None], 1)
    log_p_BxAxV = jax.nn.log_softmax(head(hidden_BxAxD).astype(jnp.float32))
    compared = log_p_BxAxV.reshape(-1, 2, *log_p_BxAxV.shape[1:])
    divergence = symmetric_kl(compared[:, 0], compared[:, 1])
    mask = batch["compared"].reshape(-1, 2, divergence.shape[1])[:, 0]
    return total + weight * jnp.sum(divergence, where=mask), jnp.sum(nll)


def symmetric_kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """(KL(P ‖ Q) + KL(Q ‖ P)) / 2 over the last axis, nats."""
    return 0.5 * jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), -1)


def _ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def _answer_tokens(tokenized: TokenizedSet) -> Ragged:
    """The tokens of the answer sentences, EOS with them."""
    lengths = tokenized.rationale_lengths
    return Ragged.from_list(
        [tokenized.targets[i][n:] for i, n in enumerate(lengths.tolist())], np.int32
    )


def _answer_arrays(
    tokenized: TokenizedSet, answers: Ragged, rows_B: np.ndarray, size_U: int
) -> Batch:
    """A batch's "answer_places" and "compared", [B, A]; rows of a pair have the same mask.

    Tokenizers may join an answer to what is before it: where the sentences' tokens differ, nothing
    is compared.
    """
    size_A = round_up(int(answers.lengths.max()))
    tokens_BxA, mask_BxA = padded(answers, rows_B, size_A, -1)
    pairs_Px2xA = tokens_BxA.reshape(-1, 2, size_A)
    same_P1 = (pairs_Px2xA[:, 0] == pairs_Px2xA[:, 1]).all(axis=1, keepdims=True)
    places_BxA = tokenized.rationale_lengths[rows_B][:, None] + np.arange(size_A)
    return {
        "answer_places": np.where(mask_BxA, np.minimum(places_BxA, size_U - 1), 0).astype(np.int32),
        "compared": mask_BxA & np.repeat(same_P1, 2, axis=0),
    }
