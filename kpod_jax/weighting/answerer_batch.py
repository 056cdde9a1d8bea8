"""Examples as the answerer reads them: padded arrays, and batches of them.

Letters: B rows, S question tokens, R rationale tokens, A answer tokens, T rationale tokens of an
answerer with another tokenizer than the student's.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kpod_jax.data.buckets import padded, round_up
from kpod_jax.data.records import Ragged
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.weighting.alignment import Reading, align

# Batches are cut to one of these fractions of the full width. Few shapes mean few compilations,
# which take a minute each if the answerer is a real language model.
_WIDTH_FRACTIONS = (0.25, 0.375, 0.5, 0.75, 1.0)


@flax.struct.dataclass
class AnswererBatch:
    """Rows for the answerer; questions are padded on the left, everything else on the right.

    T5 has only relative positions, so no padding may separate question and rationale.

    Question and answer are in the answerer's tokens, the rationale is in the student's.

    Attributes:
      question: [B, S] int32.
      question_mask: [B, S] bool.
      rationale: [B, R] int32.
      rationale_mask: [B, R] bool.
      step_ends: [B, R] bool, True at the last token of every step.
      answer: [B, A] int32, with EOS.
      answer_mask: [B, A] bool.
      reading: the rationale in the answerer's tokens; None: they are the student's.
    """

    question: jax.Array
    question_mask: jax.Array
    rationale: jax.Array
    rationale_mask: jax.Array
    step_ends: jax.Array
    answer: jax.Array
    answer_mask: jax.Array
    reading: Reading | None = None

    def repeat(self, count: int) -> "AnswererBatch":
        """Returns a batch with each row repeated `count` times consecutively."""
        return jax.tree.map(lambda array: jnp.repeat(array, count, axis=0), self)

    def cut(self, question: int, rationale: int, reading: int = 0) -> "AnswererBatch":
        """Returns the rows' last S question tokens, and first R and T rationale tokens."""
        read = self.reading
        if read is not None:
            read = jax.tree.map(lambda array: array[:, :reading], read)
        return dataclasses.replace(
            self,
            question=self.question[:, -question:],
            question_mask=self.question_mask[:, -question:],
            rationale=self.rationale[:, :rationale],
            rationale_mask=self.rationale_mask[:, :rationale],
            step_ends=self.step_ends[:, :rationale],
            reading=read,
        )


def make_answerer_batch(
    tokenized: TokenizedSet, pad_id: int, read: TokenizedSet | None = None, read_pad_id: int = 0
) -> AnswererBatch:
    """Converts a tokenized set to NumPy arrays, with right-aligned questions without EOS.

    Args:
      tokenized: the examples in the student's tokens.
      pad_id: the student's padding token.
      read: the same examples in the answerer's tokens; None: they are the student's.
      read_pad_id: the answerer's padding token.
    """
    source, source_pad_id = (tokenized, pad_id) if read is None else (read, read_pad_id)
    lengths = tokenized.rationale_lengths.tolist()

    def question(i: int) -> np.ndarray:
        """Returns the question without its EOS; a decoder-only answerer's has none."""
        ids, end = source.questions[i], source.targets[i][-1]
        return ids[:-1] if ids[-1] == end else ids

    questions = Ragged.from_list([question(i) for i in range(len(source))], np.int32)
    # A step ends where the next token is in another step, or in the answer sentence.
    ends = Ragged.from_list(
        [np.diff(tokenized.steps[i][: n + 1]) > 0 for i, n in enumerate(lengths)]
    )
    rationale, rationale_mask = _rows(_rationales(tokenized), pad_id)
    # Reversed, padded and reversed again, questions end in the same column.
    question_ids, question_mask = (
        array[:, ::-1] for array in _rows(_reversed(questions), source_pad_id)
    )
    return AnswererBatch(
        question_ids,  # pyright: ignore[reportArgumentType]
        question_mask,  # pyright: ignore[reportArgumentType]
        rationale,  # pyright: ignore[reportArgumentType]
        rationale_mask,  # pyright: ignore[reportArgumentType]
        padded(ends, np.arange(len(ends)), rationale.shape[1], False)[0],  # pyright: ignore
        *_rows(source.answers, source_pad_id),  # pyright: ignore[reportArgumentType]
        reading=None if read is None else _reading(tokenized, read, read_pad_id),
    )


def take(batch: AnswererBatch, index: np.ndarray) -> AnswererBatch:
    """Returns the rows at `index`, cut to the smallest of `_WIDTH_FRACTIONS` that fits them."""
    rows = jax.tree.map(lambda array: array[index], batch)
    masks = [rows.question_mask, rows.rationale_mask]
    if rows.reading is not None:
        masks.append(rows.reading.mask)
    widest = np.array([mask.shape[1] for mask in masks])
    needed = [int(mask.sum(axis=1).max(initial=1)) for mask in masks]
    sizes = [round_up(np.ceil(fraction * widest).astype(int)) for fraction in _WIDTH_FRACTIONS]
    return rows.cut(*next(size for size in sizes if (size >= needed).all()))


def batches(count: int, size: int, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """Yields batches of indices forever, in a new order each pass; a remainder joins the next pass.

    Args:
      count: number of examples.
      size: batch size.
      seed: seed of the orders.
      start: first batch to yield.
    """
    rng = np.random.default_rng(seed)
    remaining = np.zeros(0, np.int64)
    for number in itertools.count():
        while len(remaining) < size:
            remaining = np.concatenate([remaining, rng.permutation(count)])
        if number >= start:
            yield remaining[:size]
        remaining = remaining[size:]


def _rationales(tokenized: TokenizedSet) -> Ragged:
    """Returns the rationales' tokens, N slices of int32."""
    lengths = tokenized.rationale_lengths.tolist()
    return Ragged.from_list([tokenized.targets[i][:n] for i, n in enumerate(lengths)], np.int32)


def _reading(tokenized: TokenizedSet, read: TokenizedSet, pad_id: int) -> Reading:
    tokens, mask = _rows(_rationales(read), pad_id)
    starts, ends = align(tokenized.rationale_char_spans, read.rationale_char_spans)
    places = [
        padded(
            Ragged.from_lengths(values, read.rationale_lengths),
            np.arange(len(read)),
            tokens.shape[1],
            0,
        )[0]
        for values in (starts, ends)
    ]
    width = int((ends - starts).max(initial=1))
    return Reading(tokens, mask, *places, width=width)  # pyright: ignore[reportArgumentType]


def _rows(ragged: Ragged, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Pads to a multiple of 8 that fits the longest slice: [N, width] int32 and bool."""
    width = round_up(max(1, int(ragged.lengths.max(initial=1))))
    return padded(ragged, np.arange(len(ragged)), width, pad_id)


def _reversed(ragged: Ragged) -> Ragged:
    """Returns each slice in reverse order."""
    return Ragged.from_list([ragged[i][::-1] for i in range(len(ragged))], ragged.values.dtype)
