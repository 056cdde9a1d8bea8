"""Ground truth beyond the text of records: keypoint characters and the hardness of steps.

The built-in task provides both; learned weights and difficulties are evaluated against them.

Letters: n and m character spans, N records.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kpod_jax.data.records import Ragged, Record


def spans_overlap(spans: npt.ArrayLike, others: npt.ArrayLike) -> np.ndarray:
    """Returns whether character spans (start, end), [n, 2] and [m, 2], overlap, [n, m] bool."""
    a_nx2, b_mx2 = (np.asarray(part, np.int64).reshape(-1, 2) for part in (spans, others))
    first = np.maximum(a_nx2[:, None, 0], b_mx2[:, 0])
    return first < np.minimum(a_nx2[:, None, 1], b_mx2[:, 1])


def keypoint_tokens(records: Sequence[Record], spans: Ragged) -> np.ndarray | None:
    """Returns whether each token overlaps a keypoint, [tokens] bool; None if unknown.

    Args:
      records: N records.
      spans: [*, 2] integers, the character spans of the rationale tokens, for at least these
        records.
    """
    if not records or any(record.keypoints is None for record in records):
        return None
    return np.concatenate(
        [
            spans_overlap(spans[i], record.keypoints or ()).any(axis=1)
            for i, record in enumerate(records)
        ]
    )


def hardness(records: Sequence[Record]) -> np.ndarray | None:
    """Returns the true hardness of every step, [steps] float64; None if unknown."""
    if not records or any(record.hardness is None for record in records):
        return None
    return np.concatenate([np.asarray(record.hardness, np.float64) for record in records])


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Returns Spearman's ρ of [m] and [m] values; None for m < 3 or if either is constant."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    from scipy import stats  # Slow to import.

    return float(stats.spearmanr(x, y)[0])  # pyright: ignore[reportArgumentType]
