"""Pairs of examples from one group, side by side in a batch, for losses that compare them.

Letters: N examples, G groups, K lengths of an example, B rows.
"""

from collections.abc import Sequence

import numpy as np

from kpod_jax.data.records import Ragged


def max_lengths(lengths_NxK: np.ndarray, groups: Ragged) -> np.ndarray:
    """Returns the maximum of each of the K lengths within each group, [G, K]."""
    return np.maximum.reduceat(lengths_NxK[groups.values], groups.offsets[:-1], axis=0)


def expected_lengths(lengths_N: np.ndarray, groups: Ragged) -> float:
    """Returns the expected total length of a pair, summed over the groups."""
    sums_G = np.add.reduceat(lengths_N[groups.values], groups.offsets[:-1])
    return float((2 * sums_G / groups.lengths).sum())


def draw_pairs(rows: np.ndarray, groups: Ragged, seed: Sequence[int]) -> np.ndarray:
    """Draws two different examples of each group, side by side.

    Args:
      rows: [B / 2] group indices, -1 for padding.
      groups: example indices, at least two in each slice.
      seed: at least 0; seed and group index determine a pair, whatever its row.

    Returns:
      [B] example indices; padding is a pair of -1.
    """
    result_Bx2 = np.full((len(rows), 2), -1, np.int64)
    for place, group in enumerate(rows.tolist()):
        if group >= 0:
            generator = np.random.default_rng([*seed, group])
            result_Bx2[place] = generator.choice(groups[group], 2, replace=False)
    return result_Bx2.reshape(-1)


def group_by_name(names: Sequence[str]) -> Ragged:
    """Groups examples by name; a single example forms a pair with itself.

    Args:
      names: [N] group name of each example; "" makes the example a group of one.
    """
    members: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        members.setdefault(name or f"\0{i}", []).append(i)
    return Ragged.from_list(
        [group * 2 if len(group) == 1 else group for group in members.values()], np.int64
    )
