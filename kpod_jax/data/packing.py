"""Packing of several examples into one row, for decoder-only students: less padding than buckets.

Letters: N examples, B rows, L tokens of a row.
"""

import bisect

import numpy as np

from kpod_jax.data.records import Ragged
from kpod_jax.data.tokens import TokenizedSet


def pack_bins(lengths_N: np.ndarray, capacity: int) -> Ragged:
    """Packs examples into rows by best-fit decreasing.

    Args:
      lengths_N: tokens of each example, at most the capacity.
      capacity: L.

    Returns:
      A slice of example indices for each row; every example occurs once.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, row), ascending.
    for i in np.argsort(-lengths_N, kind="stable").tolist():
        length = int(lengths_N[i])
        place = bisect.bisect_left(free, (length, -1))
        if place < len(free):
            left, row = free.pop(place)
        else:
            left, row = capacity, len(rows)
            rows.append([])
        rows[row].append(i)
        bisect.insort(free, (left - length, row))
    return Ragged.from_list(rows, np.int64)


def sequence_lengths(tokenized: TokenizedSet) -> np.ndarray:
    """Returns the tokens each example takes in a row, [N]: prompt without its end, and target."""
    return tokenized.questions.lengths + tokenized.targets.lengths


def packed_batch(
    tokenized: TokenizedSet,
    weights: Ragged,
    rows: list[np.ndarray],
    capacity: int,
    latest_start: Ragged,
    start_steps_N: np.ndarray,
    *,
    decoder_start_id: int,
    pad_id: int,
) -> dict[str, np.ndarray]:
    """Returns a batch of packed rows, all of it for the decoder.

    Args:
      tokenized: examples of a decoder-only student.
      weights: loss weight of each target token.
      rows: example indices of each row.
      capacity: L.
      latest_start: for each target token, the largest c_i at which it is supervised.
      start_steps_N: c_i.
      decoder_start_id: last token of every prompt.
      pad_id: padding token.

    Returns:
      As `BatchSource.__getitem__`, with S = 0 and U = L, and segments [B, L] int32: the number of
      each token's example within its row, from 1; 0 is padding.
    """
    shape = len(rows), capacity
    inputs, targets = np.full(shape, pad_id, np.int32), np.full(shape, pad_id, np.int32)
    supervised, loss_weights = np.zeros(shape, bool), np.zeros(shape, np.float32)
    segments = np.zeros(shape, np.int32)
    for row, examples in enumerate(rows):
        end = 0
        for segment, i in enumerate(examples.tolist(), 1):
            question, target = tokenized.questions[i], tokenized.targets[i]
            begin, middle = end, end + len(question)
            end = middle + len(target)
            inputs[row, begin:middle] = question
            inputs[row, middle] = decoder_start_id
            inputs[row, middle + 1 : end] = target[:-1]
            targets[row, middle:end] = target
            supervised[row, middle:end] = latest_start[i] >= start_steps_N[i]
            loss_weights[row, middle:end] = weights[i]
            segments[row, begin:end] = segment
    return {
        "input_ids": inputs[:, :0],
        "input_mask": supervised[:, :0],
        "decoder_input_ids": inputs,
        "targets": targets,
        "loss_weights": np.where(supervised, loss_weights, np.float32(0)),
        "supervised": supervised,
        "segments": segments,
        "index": np.array([examples[0] if len(examples) else -1 for examples in rows], np.int32),
    }
