"""What is known of records besides their texts: which characters decide, and which steps are hard.

The built-in task knows both; they are what learned weights and difficulties are measured against.

Letters: n and m spans of characters, N records.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kpod_jax.data.records import Ragged, Record


def shared(spans: npt.ArrayLike, others: npt.ArrayLike) -> np.ndarray:
    """[n, m] bool, whether spans of characters (start, end), [n, 2] and [m, 2], share one."""
    a_nx2, b_mx2 = (np.asarray(part, np.int64).reshape(-1, 2) for part in (spans, others))
    first = np.maximum(a_nx2[:, None, 0], b_mx2[:, 0])
    return first < np.minimum(a_nx2[:, None, 1], b_mx2[:, 1])


def keypoint_tokens(records: Sequence[Record], spans: Ragged) -> np.ndarray | None:
    """[number of tokens] bool, whether each shares a character with a keypoint; None if unknown.

    Args:
      records: N records.
      spans: [*, 2] integers, the characters of the rationale's tokens, of these records at least.
    """
    if not records or any(record.keypoints is None for record in records):
        return None
    return np.concatenate(
        [shared(spans[i], record.keypoints or ()).any(axis=1) for i, record in enumerate(records)]
    )


def hardness(records: Sequence[Record]) -> np.ndarray | None:
    """The known hardness of every step, [number of steps] float64; None where it is not known."""
    if not records or any(record.hardness is None for record in records):
        return None
    return np.concatenate([np.asarray(record.hardness, np.float64) for record in records])


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's ρ of [m] and [m] values; None of less than three, or where either never varies."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    from scipy import stats  # It takes a while to import.

    return float(stats.spearmanr(x, y)[0])  # pyright: ignore[reportArgumentType]
