"""MCC-KD (Chen et al., Findings of EMNLP 2023): consistent answers across diverse rationales.

The most diverse rationales of each question are kept, by Jaccard similarity of their N-grams. Each
step trains on two of them side by side. In addition to the cross entropy of both, a symmetric
Kullback-Leibler divergence pulls together the distributions over the answer tokens after either
rationale: L = L_CE + λ (KL(P ‖ Q) + KL(Q ‖ P)) / 2.

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
    """Pairs of diverse rationales of the same question."""

    keys = ("consistency_weight", "diverse_rationales", "ngram")

    @classmethod
    def config_errors(cls, config: Any) -> list[str]:
        """Checks for several rationales per question and micro-batches of whole pairs."""
        data, distill, errors = config.data, config.distill, row_layout_errors(config)
        expected = f"several rationales per question, which {config.method} compares"
        if data.name in sources.PUBLISHED and not data.rationales:
            errors.append(
                f"data.rationales='': expected a teacher's file with {expected}, as written by "
                "--mode=teach with teacher.samples above 1"
            )
        elif data.rationales_per_question == 1 and (data.rationales or data.name == "arithmetic"):
            errors.append(f"data.rationales_per_question=1: expected {expected}")
        if distill.batch_size % (2 * distill.micro_batches):
            errors.append(
                f"distill.batch_size={distill.batch_size}: expected a multiple of 2 times "
                f"distill.micro_batches={distill.micro_batches}, because rows are compared in pairs"
            )
        return errors

    def examples(self, records: Sequence[Record]) -> list[Example]:
        """Returns the diverse rationales, grouped by question."""
        options = self.setting.options
        by_question: dict[str, list[Record]] = {}
        for record in records:
            by_question.setdefault(f"{record.question}\n{record.answer}", []).append(record)
        return [
            Example(members[i], self.prompt, group=members[0].id)
            for members in by_question.values()
            for i in diverse(
                [record.rationale for record in members],
                options["diverse_rationales"],
                options["ngram"],
            )
        ]

    def objective(self, tokenized: TokenizedSet, examples: Sequence[Example]) -> Objective:
        """Returns cross entropy plus consistency."""
        answers = _answer_tokens(tokenized)
        groups = pairs.group_by_name([example.group for example in examples])
        # Both terms are means over tokens: cross entropy of all targets, consistency of answers.
        tokens = pairs.expected_lengths(tokenized.targets.lengths, groups)
        ratio = tokens / (pairs.expected_lengths(answers.lengths, groups) / 2)
        weight = self.setting.options["consistency_weight"] * ratio
        return Objective(
            functools.partial(consistency_loss, weight=weight),
            functools.partial(_answer_arrays, tokenized, answers),
            pairs=True,
        )


def jaccard(one: str, other: str, n: int) -> float:
    """Computes the Jaccard similarity of word N-grams, in [0, 1]; a short text is one N-gram."""
    a, b = _ngrams(one, n), _ngrams(other, n)
    return len(a & b) / len(a | b)


def diverse(texts: Sequence[str], count: int, n: int) -> list[int]:
    """Greedily selects diverse texts: the first, then always the one least similar to those chosen.

    The similarity to the chosen texts is the maximum over them; ties go to the first text.

    Args:
      texts: at least one.
      count: maximum number to select.
      n: N of the N-grams.

    Returns:
      Their indices, in increasing order.
    """
    chosen, remaining = [0], list(range(1, len(texts)))
    similarity = [jaccard(texts[0], text, n) for text in texts]
    while remaining and len(chosen) < count:
        best = min(remaining, key=lambda i: similarity[i])
        chosen.append(best)
        remaining.remove(best)
        similarity = [
            max(old, jaccard(texts[best], text, n))
            for old, text in zip(similarity, texts, strict=True)
        ]
    return sorted(chosen)


def consistency_loss(
    module: Any, params: Any, batch: Any, dropout_key: jax.Array | None = None, *, weight: float
) -> tuple[jax.Array, jax.Array]:
    """Computes Σ loss_weights · nll + `weight` · Σ divergence over answer positions, and Σ nll.

    Args:
      module: the student.
      params: its parameters.
      batch: rows 2 k and 2 k + 1 belong to one question; "answer_places" [B, A] int32 are the
        positions of the answer sentence, and "compared" [B, A] bool masks those that count, equal
        for both rows of a pair.
      dropout_key: key for dropout; None for no dropout.
      weight: λ times the number of target tokens per compared position of a pair.
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
    """Computes (KL(P ‖ Q) + KL(Q ‖ P)) / 2 over the last axis, in nats."""
    return 0.5 * jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), -1)


def _ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def _answer_tokens(tokenized: TokenizedSet) -> Ragged:
    """Returns the tokens of the answer sentences, including EOS."""
    lengths = tokenized.rationale_lengths
    return Ragged.from_list(
        [tokenized.targets[i][n:] for i, n in enumerate(lengths.tolist())], np.int32
    )


def _answer_arrays(
    tokenized: TokenizedSet, answers: Ragged, rows_B: np.ndarray, size_U: int
) -> Batch:
    """Returns a batch's "answer_places" and "compared", [B, A]; a pair shares its mask.

    A tokenizer may merge the start of an answer sentence with the text before it. If the sentences
    of a pair differ in tokens, the pair is not compared.
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
