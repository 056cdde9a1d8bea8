"""Examples as the answerer reads them: padded arrays, and batches of them.

Letters: B rows, S question tokens, R rationale tokens, A answer tokens.
"""

import itertools
from collections.abc import Iterator

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kpod_jax.data.buckets import padded, round_up
from kpod_jax.data.records import Ragged
from kpod_jax.data.tokens import TokenizedSet

# Batches are cut to one of these shares of the widest: few shapes, few compilations, which take a
# minute each where the answerer is a real language model.
_SHARES = (0.25, 0.375, 0.5, 0.75, 1.0)


@flax.struct.dataclass
class AnswererBatch:
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

    def repeat(self, count: int) -> "AnswererBatch":
        """Each row `count` times, one after the other."""
        return jax.tree.map(lambda array: jnp.repeat(array, count, axis=0), self)


def make_answerer_batch(tokenized: TokenizedSet, pad_id: int) -> AnswererBatch:
    """Lays a tokenised set out as NumPy arrays: questions to the right, without their EOS."""
    count, lengths = len(tokenized), tokenized.rationale_lengths.tolist()

    def question(i: int) -> np.ndarray:
        """Without its EOS, which a decoder-only student's has not."""
        ids, end = tokenized.questions[i], tokenized.targets[i][-1]
        return ids[:-1] if ids[-1] == end else ids

    questions = Ragged.from_list([question(i) for i in range(count)], np.int32)
    rationales = Ragged.from_list([tokenized.targets[i][:n] for i, n in enumerate(lengths)])
    # The step of the next token is another one, be it that of the answer sentence.
    ends = Ragged.from_list(
        [np.diff(tokenized.steps[i][: n + 1]) > 0 for i, n in enumerate(lengths)]
    )
    rationale, rationale_mask = _rows(rationales, pad_id)
    # From right to left and back again, questions end together.
    question_ids, question_mask = (array[:, ::-1] for array in _rows(_reversed(questions), pad_id))
    return AnswererBatch(
        question_ids,  # pyright: ignore[reportArgumentType]
        question_mask,  # pyright: ignore[reportArgumentType]
        rationale,  # pyright: ignore[reportArgumentType]
        rationale_mask,  # pyright: ignore[reportArgumentType]
        padded(ends, np.arange(len(ends)), rationale.shape[1], False)[0],  # pyright: ignore
        *_rows(tokenized.answers, pad_id),  # pyright: ignore[reportArgumentType]
    )


def take(batch: AnswererBatch, index: np.ndarray) -> AnswererBatch:
    """Some rows, cut to the least of `_SHARES` of questions and rationales that holds them."""
    rows = jax.tree.map(lambda array: array[index], batch)
    widest = np.array([batch.question.shape[1], batch.rationale.shape[1]])
    needed = [
        int(mask.sum(axis=1).max(initial=1)) for mask in (rows.question_mask, rows.rationale_mask)
    ]
    sizes = [round_up(np.ceil(share * widest).astype(int)) for share in _SHARES]
    s, r = next(size for size in sizes if (size >= needed).all())
    return rows.replace(
        question=rows.question[:, -s:],
        question_mask=rows.question_mask[:, -s:],
        rationale=rows.rationale[:, :r],
        rationale_mask=rows.rationale_mask[:, :r],
        step_ends=rows.step_ends[:, :r],
    )


def batches(count: int, size: int, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """Batches of indices without end, every pass in a new order; short rests join the next pass.

    Args:
      count: of examples.
      size: of a batch.
      seed: of the orders.
      start: the batch to begin with.
    """
    rng = np.random.default_rng(seed)
    rest = np.zeros(0, np.int64)
    for number in itertools.count():
        while len(rest) < size:
            rest = np.concatenate([rest, rng.permutation(count)])
        if number >= start:
            yield rest[:size]
        rest = rest[size:]


def _rows(ragged: Ragged, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """[N, longest, up to a multiple of 8] int32 and bool."""
    width = round_up(max(1, int(ragged.lengths.max(initial=1))))
    return padded(ragged, np.arange(len(ragged)), width, pad_id)


def _reversed(ragged: Ragged) -> Ragged:
    """Each slice from its end to its start."""
    return Ragged.from_list([ragged[i][::-1] for i in range(len(ragged))], ragged.values.dtype)
