"""Which examples share batches, and ragged rows as rectangles.

Letters: N examples, K sides (lengths that an example has), B rows of a batch.
"""

from typing import TypeVar

import numpy as np

from kpod_jax.data.records import Ragged

_MULTIPLE = 8
_Length = TypeVar("_Length", int, np.ndarray)


def round_up(length: _Length) -> _Length:
    """Lengths, one or many, up to a multiple of 8, which suits the tiles of TPUs and GPUs."""
    return -(-length // _MULTIPLE) * _MULTIPLE


def length_buckets(
    lengths_NxK: np.ndarray, count: int, batch_size: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divides examples into at most `count` buckets so that their batches hold least padding.

    Examples are sorted by the longest of their K sides, in multiples of 8; where to cut that row is
    found exactly, by dynamic programming over it.

    Args:
      lengths_NxK: K lengths of each example, such as those of its prompt and its target.
      count: of buckets.
      batch_size: B.

    Returns:
      Buckets of (members, shape): numbers of examples, rising, and [K] the size of each side, the
      longest member's rounded up to a multiple of 8.
    """
    lengths_NxK = round_up(np.maximum(lengths_NxK, 1))
    _, group_N = np.unique(lengths_NxK.max(axis=1), return_inverse=True)
    groups = int(group_N.max(initial=-1)) + 1
    sizes = np.zeros((groups, lengths_NxK.shape[1]), np.int64)
    np.maximum.at(sizes, group_N, lengths_NxK)
    counts = np.bincount(group_N, minlength=groups)

    # best[stop][n]: least tokens of groups before `stop` in n buckets, and the start of the last.
    best: list[dict[int, tuple[int, int]]] = [{0: (0, 0)}]
    for stop in range(1, groups + 1):
        found: dict[int, tuple[int, int]] = {}
        for start in range(stop):
            batches = -(-int(counts[start:stop].sum()) // batch_size)
            tokens = batches * batch_size * int(sizes[start:stop].max(axis=0).sum())
            for used, (before, _) in best[start].items():
                option = before + tokens, start
                if used < count and option < found.get(used + 1, (option[0] + 1, 0)):
                    found[used + 1] = option
        best.append(found)

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
    """Slices of a ragged array as one array.

    Args:
      ragged: slices [*, ...].
      rows_B: which slices; -1 is an empty one.
      size: of each row, not shorter than any of the slices.
      fill: what is put behind them.

    Returns:
      Values [B, size, ...] of the ragged array's type, and [B, size] bool where they are its own.
    """
    starts_B = ragged.offsets[rows_B]
    lengths_B = np.where(rows_B >= 0, ragged.offsets[rows_B + 1] - starts_B, 0)
    place = np.arange(size)
    mask = place < lengths_B[:, None]
    flat = np.where(mask, starts_B[:, None] + place, 0)
    values = ragged.values[flat]
    own = mask.reshape(mask.shape + (1,) * (values.ndim - mask.ndim))
    return np.where(own, values, np.asarray(fill, values.dtype)), mask


def batch_rows(members: np.ndarray, batch_size: int) -> np.ndarray:
    """Cuts [members] into [batches, B], the last row filled up with -1."""
    batches = -(-len(members) // batch_size)
    padding = np.full(batches * batch_size - len(members), -1, members.dtype)
    return np.concatenate([members, padding]).reshape(batches, batch_size)
