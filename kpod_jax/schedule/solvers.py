"""Which examples advance at a phase: maximise F(S) while ΔH(S) <= ΔD (Eq. 13).

F(S) - F(∅) = Σ_{i in S} δ_i + β Σ_k sqrt(|C_k ∩ S|) is monotone and submodular, and what it costs
to choose example i is δ_i. The example that is chosen as the s-th of its cluster, counted from 0,
gains δ_i + β (sqrt(s + 1) - sqrt(s)): of two examples of one cluster the cheaper has the higher
density (gain per cost), whatever was chosen before. So each cluster is worked off from its cheapest
example to its dearest, and gain and density of every example are known after one sort. What a
solver still chooses is how to merge these K lists:

- `greedy` by density, the best first: exact density greedy, in O(n log n).
- `ftgp` by falling density thresholds, as the paper does.
- `exact` tries every subset; it is there to measure the others against.

Costs rise within a cluster, so once an example does not fit the budget, none after it in its
cluster does. Hence every state that a merge passes through has taken a prefix of each list.

Density greedy alone guarantees no constant share of the optimum: one example may be worth more
than all that it took. Both solvers therefore try, after every example taken, to take one more
example and stop there ("Greedy+"); this raises the guarantee to 1/2 of the best F(S) - F(∅), and to
1/2 - ε for thresholds. What still fits after that is taken too, since F is monotone.

Examples of one cluster with equal costs are interchangeable at this phase: the one that comes first
in the arrays is chosen first.

Letters: N examples, n of them affordable, K clusters, m examples taken.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

# (cost_N, cluster_N, budget, beta) -> [N] bool.
Solver = Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]
# (cost_n, rank_n) of ranked examples -> [n] the order in which they are tried.
_Merge = Callable[[np.ndarray, np.ndarray], np.ndarray]

_MAX_EXACT = 16


def greedy(cost_N: np.ndarray, cluster_N: np.ndarray, budget: float, beta: float) -> np.ndarray:
    """Density greedy with single-example augmentation: at least 1/2 of the best F(S) - F(∅).

    An example of density 1 + β (sqrt(s + 1) - sqrt(s)) / δ comes before those of lower density. As
    long as β is not 0 its size does not change that order; it decides the augmentation.

    Args:
      cost_N: [N] δ_i, finite and not below 0. What costs nothing is always chosen.
      cluster_N: [N] integers from 0.
      budget: ΔD; below 0, nothing is chosen.
      beta: β, not below 0. At 0 clusters do not matter.

    Returns:
      [N] bool, the chosen examples. No other example fits the budget beside them.

    Raises:
      ValueError: arguments out of these ranges, or arrays of different lengths.
    """
    return _solve(cost_N, cluster_N, budget, beta, _by_density)


def ftgp(
    cost_N: np.ndarray, cluster_N: np.ndarray, budget: float, beta: float, epsilon: float = 0.1
) -> np.ndarray:
    """Falling density thresholds with augmentation: at least 1/2 - ε of the best F(S) - F(∅).

    After Li, Feldman, Kazemi and Karbasi, "Submodular Maximization in Clean Linear Time" (NeurIPS
    2022), the solver that the paper names. The threshold starts at the highest density and falls
    by the factor 1 - ε; each pass takes the examples that fit and whose density reaches it. The
    order within a pass is free; here it is by cost, so that a pass takes a prefix of every
    cluster's list and all passes together are one sort. The augmentation is tried after every
    example, not at chosen points alone: it costs little here, and can only do better.

    Args, Returns and Raises as for `greedy`, and
      epsilon: ε, between 0 and 1: smaller is closer to `greedy`.
    """
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon {epsilon} is not between 0 and 1")

    def by_threshold(cost_n: np.ndarray, rank_n: np.ndarray) -> np.ndarray:
        return _by_threshold(cost_n, rank_n, beta, epsilon)

    return _solve(cost_N, cluster_N, budget, beta, by_threshold)


def exact(cost_N: np.ndarray, cluster_N: np.ndarray, budget: float, beta: float) -> np.ndarray:
    """The best selection, by trying all 2^N of them.

    Args and Returns as for `greedy`.

    Raises:
      ValueError: as for `greedy`, or more than 16 examples.
    """
    cost_N, cluster_N = _checked(cost_N, cluster_N, beta)
    size = len(cost_N)
    if size > _MAX_EXACT:
        raise ValueError(f"{size} examples are too many to try every subset; at most {_MAX_EXACT}")
    subsets = (np.arange(2**size)[:, None] >> np.arange(size)) & 1 == 1
    if budget < 0:
        return subsets[0]
    cost = subsets @ cost_N
    members_NxK = cluster_N[:, None] == np.unique(cluster_N)
    roots = np.sqrt(subsets.astype(np.float64) @ members_NxK).sum(axis=1)
    return subsets[np.argmax(np.where(cost <= budget, cost + beta * roots, -np.inf))]


SOLVERS: dict[str, Solver] = {"greedy": greedy, "ftgp": ftgp}


@dataclasses.dataclass(frozen=True)
class _Ranked:
    """The affordable examples by cluster, and by cost within the cluster.

    Attributes:
      index_n: their places in the caller's arrays.
      cost_n: their costs.
      label_n: their clusters.
      rank_n: how many of its cluster are chosen when the turn comes to each.
      bounds: [K + 1] where each cluster's list begins.
    """

    index_n: np.ndarray
    cost_n: np.ndarray
    label_n: np.ndarray
    rank_n: np.ndarray
    bounds: np.ndarray


def _solve(
    cost_N: np.ndarray, cluster_N: np.ndarray, budget: float, beta: float, merge: _Merge
) -> np.ndarray:
    cost_N, label_N = _checked(cost_N, cluster_N, beta)
    selected_N = np.zeros(len(cost_N), bool)
    if budget < 0 or not len(cost_N):
        return selected_N
    if cost_N.sum() <= budget:
        return ~selected_N
    if beta == 0:
        label_N = np.zeros_like(label_N)  # Without diversity all examples are one cluster.
    counts_K = np.zeros(int(label_N.max()) + 1, np.int64)

    ranked = _rank(cost_N, label_N, np.flatnonzero(cost_N <= budget), counts_K)
    taken_m = _take(merge(ranked.cost_n, ranked.rank_n), ranked.cost_n, budget)
    prefix, extra = _augmentation(ranked, taken_m, budget, beta)
    if extra is None:
        selected_N[ranked.index_n[taken_m]] = True
        return selected_N

    # The augmented prefix is worth more. F is monotone: go on with what still fits beside it.
    taken_m = np.append(taken_m[:prefix], extra)
    selected_N[ranked.index_n[taken_m]] = True
    left = budget - ranked.cost_n[taken_m].sum()
    counts_K += np.bincount(ranked.label_n[taken_m], minlength=len(counts_K))
    ranked = _rank(cost_N, label_N, np.flatnonzero(~selected_N & (cost_N <= left)), counts_K)
    taken_m = _take(merge(ranked.cost_n, ranked.rank_n), ranked.cost_n, left)
    selected_N[ranked.index_n[taken_m]] = True
    return selected_N


def _rank(
    cost_N: np.ndarray, label_N: np.ndarray, index_n: np.ndarray, counts_K: np.ndarray
) -> _Ranked:
    """Sorts the examples `index_n`, of whose clusters `counts_K` are chosen already."""
    # Labels are small unsigned integers, which NumPy sorts in linear time.
    index_n = index_n[np.argsort(label_N[index_n], kind="stable")]
    label_n, cost_n = label_N[index_n], cost_N[index_n]
    bounds = np.searchsorted(label_n, np.arange(len(counts_K) + 1))
    for start, stop in itertools.pairwise(bounds):
        order = start + _by_cost(cost_n[start:stop])
        index_n[start:stop], cost_n[start:stop] = index_n[order], cost_n[order]
    rank_n = np.arange(len(index_n)) + (counts_K - bounds[:-1])[label_n]
    return _Ranked(index_n, cost_n, label_n, rank_n, bounds)


def _by_cost(cost_m: np.ndarray) -> np.ndarray:
    """The stable order of costs, none below 0.

    Their bits sort as they do. With the last bits replaced by the place, one array of integers is
    to be sorted, which is the faster; few are out of order by the bits that were left out.
    """
    bits = np.uint64(len(cost_m).bit_length())
    places_m = np.arange(len(cost_m), dtype=np.uint64)
    keys_m = np.sort((cost_m.view(np.uint64) >> bits << bits) | places_m)
    order_m = (keys_m & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    return order_m[np.argsort(cost_m[order_m], kind="stable")]


def _increment(count: np.ndarray) -> np.ndarray:
    """sqrt(s + 1) - sqrt(s), without cancellation."""
    return 1 / (np.sqrt(count + 1.0) + np.sqrt(count))


def _by_density(cost_n: np.ndarray, rank_n: np.ndarray) -> np.ndarray:
    """Highest density first; equal ones by cluster, then by cost."""
    with np.errstate(divide="ignore", over="ignore"):
        ratio_n = _increment(rank_n) / cost_n
    # Falling runs, one a cluster: the stable sort finds and merges them in O(n log K).
    return np.argsort(-ratio_n, kind="stable")


def _by_threshold(
    cost_n: np.ndarray, rank_n: np.ndarray, beta: float, epsilon: float
) -> np.ndarray:
    """By the pass in which the density reaches the threshold; within a pass, by cost."""
    with np.errstate(divide="ignore", over="ignore"):
        ratio_n = np.full(len(cost_n), np.inf)
        np.divide(beta * _increment(rank_n), cost_n, out=ratio_n, where=cost_n > 0)
    density_n = 1 + ratio_n
    finite = np.isfinite(density_n)
    pass_n = np.zeros(len(cost_n))
    top = density_n.max(initial=1.0, where=finite)
    fall = np.log(top / density_n[finite]) / -np.log1p(-epsilon)
    pass_n[finite] = np.ceil(fall)
    return np.lexsort((cost_n, pass_n))


def _take(order_n: np.ndarray, cost_n: np.ndarray, budget: float) -> np.ndarray:
    """Goes through `order_n`, takes what fits, passes over what does not: [m], what was taken.

    Each turn takes the longest prefix that fits. What costs more than is left then never fits
    again, and that is the rest of at least one cluster, so there are at most K + 1 turns.
    """
    taken = []
    while order_n.size:
        spent = np.cumsum(cost_n[order_n])
        fits = int(np.searchsorted(spent, budget, side="right"))
        taken.append(order_n[:fits])
        budget -= float(spent[fits - 1]) if fits else 0.0
        order_n = order_n[fits:]
        order_n = order_n[cost_n[order_n] <= budget]
    return np.concatenate(taken) if taken else order_n


def _augmentation(
    ranked: _Ranked, taken_m: np.ndarray, budget: float, beta: float
) -> tuple[int, int | None]:
    """The prefix of `taken_m` and the one further example that together are worth the most.

    Returns:
      (length of the prefix, position of the example in `ranked`), or (m, None) where nothing is
      worth more than the whole of `taken_m`.
    """
    zero = np.zeros(1)
    spent = np.concatenate([zero, np.cumsum(ranked.cost_n[taken_m])])
    roots = np.concatenate([zero, np.cumsum(_increment(ranked.rank_n[taken_m]))])
    values = spent + beta * roots
    best, result = values[-1], (len(taken_m), None)
    # One more example is worth the dearest's cost and beta at most: shorter prefixes cannot win.
    first = int(np.searchsorted(values + ranked.cost_n.max(initial=0) + beta, best, side="right"))
    if first == len(values):
        return result
    values, left, label_m = values[first:], budget - spent[first:], ranked.label_n[taken_m]
    for k, (start, stop) in enumerate(itertools.pairwise(ranked.bounds)):
        if start == stop:
            continue
        cost = ranked.cost_n[start:stop]
        before = np.count_nonzero(label_m[:first] == k)
        counts = before + np.concatenate([[0], np.cumsum(label_m[first:] == k)])
        # The dearest that fits is worth most; a prefix has taken the first `counts` of the list.
        place = np.searchsorted(cost, left, side="right") - 1
        value = values + cost[place] + beta * _increment(counts)
        value[place < counts] = -np.inf
        i = int(np.argmax(value))
        if value[i] > best:
            best, result = value[i], (first + i, int(start + place[i]))
    return result


def _checked(
    cost_N: np.ndarray, cluster_N: np.ndarray, beta: float
) -> tuple[np.ndarray, np.ndarray]:
    """The costs as float64 and the clusters in the smallest unsigned type that holds them."""
    cost_N, cluster_N = np.asarray(cost_N, np.float64) + 0.0, np.asarray(cluster_N)  # No -0.0.
    if cost_N.ndim != 1 or cost_N.shape != cluster_N.shape:
        raise ValueError(f"costs {cost_N.shape} and clusters {cluster_N.shape} are not both [N]")
    if not np.all((cost_N >= 0) & (cost_N < np.inf)):
        raise ValueError("a cost is negative, NaN or infinite")
    if not 0 <= beta < np.inf:
        raise ValueError(f"beta {beta} is negative, NaN or infinite")
    if not cost_N.size:
        return cost_N, cluster_N.astype(np.uint8)
    if cluster_N.dtype.kind not in "iu" or cluster_N.min() < 0:
        raise ValueError("clusters are not integers from 0")
    return cost_N, cluster_N.astype(np.min_scalar_type(int(cluster_N.max())))
