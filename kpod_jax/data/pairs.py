"""Two examples of one group side by side in a batch, for losses that compare them.

Letters: N examples, G groups, K lengths of an example, B rows.
"""

from collections.abc import Sequence

import numpy as np

from kpod_jax.data.records import Ragged


def longest(lengths_NxK: np.ndarray, groups: Ragged) -> np.ndarray:
    """[G, K] the longest of each group's examples."""
    return np.maximum.reduceat(lengths_NxK[groups.values], groups.offsets[:-1], axis=0)


def expected(lengths_N: np.ndarray, groups: Ragged) -> float:
    """Mean over all draws of the lengths of a pair, summed over the groups."""
    sums_G = np.add.reduceat(lengths_N[groups.values], groups.offsets[:-1])
    return float((2 * sums_G / groups.lengths).sum())


def drawn(rows: np.ndarray, groups: Ragged, seed: Sequence[int]) -> np.ndarray:
    """Two different examples of each group, side by side.

    Args:
      rows: [B / 2] numbers of groups, -1 for padding.
      groups: numbers of examples, two at least in each slice.
      seed: not negative; with it a group's number decides its pair, whatever the row.

    Returns:
      [B] numbers of examples; two of -1 for padding.
    """
    result_Bx2 = np.full((len(rows), 2), -1, np.int64)
    for place, group in enumerate(rows.tolist()):
        if group >= 0:
            generator = np.random.default_rng([*seed, group])
            result_Bx2[place] = generator.choice(groups[group], 2, replace=False)
    return result_Bx2.reshape(-1)


def groups_of(names: Sequence[str]) -> Ragged:
    """The examples of each name; one that is alone is a pair with itself.

    Args:
      names: of the group of each example, [N]; "" is a group by itself.
    """
    members: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        members.setdefault(name or f"\0{i}", []).append(i)
    return Ragged.from_list(
        [own * 2 if len(own) == 1 else own for own in members.values()], np.int64
    )
