"""Length buckets and padding of ragged rows.

Letters: N examples, K sides (lengths of an example), B rows of a batch.
"""

from typing import TypeVar

import numpy as np

from kpod_jax.data.records import Ragged

_MULTIPLE = 8
_Length = TypeVar("_Length", int, np.ndarray)


def round_up(length: _Length) -> _Length:
    """Rounds one or more lengths up to a multiple of 8, which suits TPU and GPU tiles."""
    return -(-length // _MULTIPLE) * _MULTIPLE


def length_buckets(
    lengths_NxK: np.ndarray, count: int, batch_size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divides examples into at most `count` buckets that minimize padding.

    Examples are sorted by the longest of their K sides, in multiples of 8; dynamic programming
    finds the optimal boundaries.

    Args:
      lengths_NxK: K lengths of each example, such as those of its prompt and its target.
      count: maximum number of buckets.
      batch_size: B.

    Returns:
      Buckets of (members, shape): ascending example indices, and [K] the size of each side, that of
      the longest member rounded up to a multiple of 8.
    """
    lengths_NxK = round_up(np.maximum(lengths_NxK, 1))
    _, group_N = np.unique(lengths_NxK.max(axis=1), return_inverse=True)
    groups = int(group_N.max(initial=-1)) + 1
    sizes = np.zeros((groups, lengths_NxK.shape[1]), np.int64)
    np.maximum.at(sizes, group_N, lengths_NxK)
    counts = np.bincount(group_N, minlength=groups)

    # best[stop][n]: minimum tokens of groups before `stop` in n buckets, and the last one's start.
    best: list[dict[int, tuple[int, int]]] = [{0: (0, 0)}]
    for stop in range(1, groups + 1):
        options: dict[int, tuple[int, int]] = {}
        for start in range(stop):
            batches = -(-int(counts[start:stop].sum()) // batch_size)
            tokens = batches * batch_size * int(sizes[start:stop].max(axis=0).sum())
            for used, (before, _) in best[start].items():
                option = before + tokens, start
                if used < count and option < options.get(used + 1, (option[0] + 1, 0)):
                    options[used + 1] = option
        best.append(options)

    buckets = []
    stop = groups
    used = min(best[stop], key=lambda n: best[stop][n])
    while stop:
        start = best[stop][used][1]
        members = np.flatnonzero((group_N >= start) & (group_N < stop))
        buckets.append((members, sizes[start:stop].max(axis=0)))
        stop, used = start, used - 1
    return buckets[::-1]


def padded(
    ragged: Ragged, rows_B: np.ndarray, size: int, fill: int | float
) -> tuple[np.ndarray, np.ndarray]:
    """Pads slices of a ragged array to a common size.

    Args:
      ragged: slices [*, ...].
      rows_B: indices of the slices; -1: an empty one.
      size: size of each row, at least that of the longest slice.
      fill: padding value.

    Returns:
      Values [B, size, ...] of the ragged array's dtype, and a mask [B, size] bool, False for
      padding.
    """
    starts_B = ragged.offsets[rows_B]
    lengths_B = np.where(rows_B >= 0, ragged.offsets[rows_B + 1] - starts_B, 0)
    place = np.arange(size)
    mask = place < lengths_B[:, None]
    flat = np.where(mask, starts_B[:, None] + place, 0)
    values = ragged.values[flat]
    broadcast = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    return np.where(broadcast, values, np.asarray(fill, values.dtype)), mask


def batch_rows(members: np.ndarray, batch_size: int) -> np.ndarray:
    """Splits [members] into [batches, B], padding the last row with -1."""
    batches = -(-len(members) // batch_size)
    padding = np.full(batches * batch_size - len(members), -1, members.dtype)
    return np.concatenate([members, padding]).reshape(batches, batch_size)
