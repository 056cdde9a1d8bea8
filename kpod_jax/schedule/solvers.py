"""Solvers that select the examples to advance: maximize F(S) subject to ΔH(S) <= ΔD (Eq. 13).

F(S) - F(∅) = Σ_{i in S} δ_i + β Σ_k sqrt(|C_k ∩ S|) is monotone and submodular, and the cost of
example i is δ_i. If s examples of its cluster are already selected, it gains
δ_i + β (sqrt(s + 1) - sqrt(s)). Of two examples in the same cluster, the cheaper one therefore
always has the higher density (gain per cost). So each cluster is processed from its cheapest to its
most expensive example, and one sort determines the gain and density of every example. The solvers
differ only in how they merge these K lists:

- `greedy` merges by density, highest first: exact density greedy, in O(n log n).
- `ftgp` merges by decreasing density thresholds, as in the paper.
- `exact` tries every subset; it serves as a reference for the others.

Costs increase within a cluster, so once an example exceeds the budget, all later ones in its
cluster do too. Hence the examples taken at any point of a merge are a prefix of each list.

Density greedy alone guarantees no constant fraction of the optimum, because a single example may be
worth more than everything it took. After every example taken, both solvers therefore also consider
taking one more example and stopping there ("Greedy+"). This guarantees 1/2 of the best F(S) - F(∅),
or 1/2 - ε with thresholds. Any examples that still fit are then taken too, since F is monotone.

Examples of one cluster with equal costs are interchangeable in a phase; they are taken in the order
of the arrays.

Letters: N examples, n of them affordable, K clusters, m examples taken.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

# (cost_N, cluster_N, budget, beta) -> [N] bool.
Solver = Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]
# (cost_n, rank_n) of ranked examples -> [n] the order in which to try them.
_Merge = Callable[[np.ndarray, np.ndarray], np.ndarray]

_MAX_EXACT = 16


def greedy(cost_N: np.ndarray, cluster_N: np.ndarray, budget: float, beta: float) -> np.ndarray:
    """Density greedy with single-example augmentation: at least 1/2 of the best F(S) - F(∅).

    Examples are taken by decreasing density, 1 + β (sqrt(s + 1) - sqrt(s)) / δ. The value of β does
    not affect this order unless it is 0; it matters for the augmentation.

    Args:
      cost_N: [N] δ_i, finite and at least 0. Examples that cost 0 are always selected.
      cluster_N: [N] integers from 0.
      budget: ΔD; if negative, nothing is selected.
      beta: β, at least 0. Clusters do not matter if it is 0.

    Returns:
      [N] bool, the selected examples. No other example fits the budget in addition.

    Raises:
      ValueError: if an argument is out of range, or the arrays differ in length.
    """
    return _solve(cost_N, cluster_N, budget, beta, _by_density)


def ftgp(
    cost_N: np.ndarray, cluster_N: np.ndarray, budget: float, beta: float, epsilon: float = 0.1
) -> np.ndarray:
    """Decreasing density thresholds with augmentation: at least 1/2 - ε of the best F(S) - F(∅).

    Follows Li, Feldman, Kazemi and Karbasi, "Submodular Maximization in Clean Linear Time" (NeurIPS
    2022), the solver that the paper names. The threshold starts at the highest density and is
    multiplied by 1 - ε after each pass; a pass takes the examples that fit and whose density
    reaches the threshold. The order within a pass is arbitrary. It is by cost here, so that a pass
    takes a prefix of each cluster's list and one sort covers all passes. The augmentation is tried
    after every example, not only at selected points; it is cheap here and can only help.

    Args, Returns and Raises as for `greedy`, and
      epsilon: ε, strictly between 0 and 1; smaller is closer to `greedy`.
    """
    if not 0 < epsilon < 1:
        raise ValueError(f"Expected an epsilon strictly between 0 and 1, got {epsilon}.")

    def by_threshold(cost_n: np.ndarray, rank_n: np.ndarray) -> np.ndarray:
        return _by_threshold(cost_n, rank_n, beta, epsilon)

    return _solve(cost_N, cluster_N, budget, beta, by_threshold)


def exact(cost_N: np.ndarray, cluster_N: np.ndarray, budget: float, beta: float) -> np.ndarray:
    """Finds the best selection by trying all 2^N.

    Args and Returns as for `greedy`.

    Raises:
      ValueError: as for `greedy`, or if there are more than 16 examples.
    """
    cost_N, cluster_N = _checked_arrays(cost_N, cluster_N, beta)
    size = len(cost_N)
    if size > _MAX_EXACT:
        raise ValueError(f"The exact solver takes at most {_MAX_EXACT} examples, got {size}.")
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
    """The affordable examples, sorted by cluster, then by cost.

    Attributes:
      index_n: their indices in the caller's arrays.
      cost_n: their costs.
      label_n: their clusters.
      rank_n: number of examples of the same cluster that are taken before each.
      bounds: [K + 1] start of each cluster's list.
    """

    index_n: np.ndarray
    cost_n: np.ndarray
    label_n: np.ndarray
    rank_n: np.ndarray
    bounds: np.ndarray


def _solve(
    cost_N: np.ndarray, cluster_N: np.ndarray, budget: float, beta: float, merge: _Merge
) -> np.ndarray:
    cost_N, label_N = _checked_arrays(cost_N, cluster_N, beta)
    selected_N = np.zeros(len(cost_N), bool)
    if budget < 0 or not len(cost_N):
        return selected_N
    if cost_N.sum() <= budget:
        return ~selected_N
    if beta == 0:
        label_N = np.zeros_like(label_N)  # Without diversity, use one cluster.
    counts_K = np.zeros(int(label_N.max()) + 1, np.int64)

    ranked = _rank(cost_N, label_N, np.flatnonzero(cost_N <= budget), counts_K)
    taken_m = _take(merge(ranked.cost_n, ranked.rank_n), ranked.cost_n, budget)
    prefix, extra = _augmentation(ranked, taken_m, budget, beta)
    if extra is None:
        selected_N[ranked.index_n[taken_m]] = True
        return selected_N

    # The augmented prefix is worth more. F is monotone, so add the examples that still fit.
    taken_m = np.append(taken_m[:prefix], extra)
    selected_N[ranked.index_n[taken_m]] = True
    budget_left = budget - ranked.cost_n[taken_m].sum()
    counts_K += np.bincount(ranked.label_n[taken_m], minlength=len(counts_K))
    affordable_n = np.flatnonzero(~selected_N & (cost_N <= budget_left))
    ranked = _rank(cost_N, label_N, affordable_n, counts_K)
    taken_m = _take(merge(ranked.cost_n, ranked.rank_n), ranked.cost_n, budget_left)
    selected_N[ranked.index_n[taken_m]] = True
    return selected_N


def _rank(
    cost_N: np.ndarray, label_N: np.ndarray, index_n: np.ndarray, counts_K: np.ndarray
) -> _Ranked:
    """Sorts the examples `index_n`, given the counts of examples already taken per cluster."""
    # NumPy sorts the small unsigned labels in linear time.
    index_n = index_n[np.argsort(label_N[index_n], kind="stable")]
    label_n, cost_n = label_N[index_n], cost_N[index_n]
    bounds = np.searchsorted(label_n, np.arange(len(counts_K) + 1))
    for start, stop in itertools.pairwise(bounds):
        order = start + _by_cost(cost_n[start:stop])
        index_n[start:stop], cost_n[start:stop] = index_n[order], cost_n[order]
    rank_n = np.arange(len(index_n)) + (counts_K - bounds[:-1])[label_n]
    return _Ranked(index_n, cost_n, label_n, rank_n, bounds)


def _by_cost(cost_m: np.ndarray) -> np.ndarray:
    """Stable argsort of nonnegative costs.

    Nonnegative floats sort like their bits. Replacing the low bits with the index leaves a single
    integer array to sort, which is faster than an argsort; the final stable argsort fixes the few
    that the dropped bits put out of order.
    """
    bits = np.uint64(len(cost_m).bit_length())
    indices_m = np.arange(len(cost_m), dtype=np.uint64)
    keys_m = np.sort((cost_m.view(np.uint64) >> bits << bits) | indices_m)
    order_m = (keys_m & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    return order_m[np.argsort(cost_m[order_m], kind="stable")]


def _increment(count: np.ndarray) -> np.ndarray:
    """Computes sqrt(s + 1) - sqrt(s) without cancellation."""
    return 1 / (np.sqrt(count + 1.0) + np.sqrt(count))


def _by_density(cost_n: np.ndarray, rank_n: np.ndarray) -> np.ndarray:
    """Orders by density, highest first; ties by cluster, then by cost."""
    with np.errstate(divide="ignore", over="ignore"):
        ratio_n = _increment(rank_n) / cost_n
    # One decreasing run per cluster: the stable sort merges them in O(n log K).
    return np.argsort(-ratio_n, kind="stable")


def _by_threshold(
    cost_n: np.ndarray, rank_n: np.ndarray, beta: float, epsilon: float
) -> np.ndarray:
    """Orders by the pass whose threshold the density reaches; within a pass, by cost."""
    with np.errstate(divide="ignore", over="ignore"):
        ratio_n = np.full(len(cost_n), np.inf)
        np.divide(beta * _increment(rank_n), cost_n, out=ratio_n, where=cost_n > 0)
    density_n = 1 + ratio_n
    finite = np.isfinite(density_n)
    pass_n = np.zeros(len(cost_n))
    top = density_n.max(initial=1.0, where=finite)
    passes = np.log(top / density_n[finite]) / -np.log1p(-epsilon)
    pass_n[finite] = np.ceil(passes)
    return np.lexsort((cost_n, pass_n))


def _take(order_n: np.ndarray, cost_n: np.ndarray, budget: float) -> np.ndarray:
    """Goes through `order_n` and takes each example that still fits; returns the taken, [m].

    Each iteration takes the longest prefix that fits and drops all examples that cost more than the
    remaining budget. This drops the rest of at least one cluster, so there are at most K + 1
    iterations.
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
    """Finds the prefix of `taken_m` and the extra example that are worth the most together.

    Returns:
      (length of the prefix, index of the example in `ranked`), or (m, None) if no such pair is
      worth more than all of `taken_m`.
    """
    zero = np.zeros(1)
    spent = np.concatenate([zero, np.cumsum(ranked.cost_n[taken_m])])
    roots = np.concatenate([zero, np.cumsum(_increment(ranked.rank_n[taken_m]))])
    values = spent + beta * roots
    best, result = values[-1], (len(taken_m), None)
    # One example adds at most the maximum cost plus beta, so shorter prefixes cannot win.
    first = int(np.searchsorted(values + ranked.cost_n.max(initial=0) + beta, best, side="right"))
    if first == len(values):
        return result
    values, budget_left = values[first:], budget - spent[first:]
    label_m = ranked.label_n[taken_m]
    for k, (start, stop) in enumerate(itertools.pairwise(ranked.bounds)):
        if start == stop:
            continue
        cost = ranked.cost_n[start:stop]
        before = np.count_nonzero(label_m[:first] == k)
        counts = before + np.concatenate([[0], np.cumsum(label_m[first:] == k)])
        # The most expensive example that fits is worth most. A prefix contains the first `counts`.
        index = np.searchsorted(cost, budget_left, side="right") - 1
        value = values + cost[index] + beta * _increment(counts)
        value[index < counts] = -np.inf
        i = int(np.argmax(value))
        if value[i] > best:
            best, result = value[i], (first + i, int(start + index[i]))
    return result


def _checked_arrays(
    cost_N: np.ndarray, cluster_N: np.ndarray, beta: float
) -> tuple[np.ndarray, np.ndarray]:
    """Validates; returns costs as float64 and clusters in the smallest unsigned type that fits."""
    cost_N, cluster_N = np.asarray(cost_N, np.float64) + 0.0, np.asarray(cluster_N)  # No -0.0.
    if cost_N.ndim != 1 or cost_N.shape != cluster_N.shape:
        raise ValueError(
            f"Expected costs and clusters of shape [N], got {cost_N.shape} and {cluster_N.shape}."
        )
    if not np.all((cost_N >= 0) & (cost_N < np.inf)):
        raise ValueError("Expected finite costs of at least 0, got one that is not.")
    if not 0 <= beta < np.inf:
        raise ValueError(f"Expected a finite beta of at least 0, got {beta}.")
    if not cost_N.size:
        return cost_N, cluster_N.astype(np.uint8)
    if cluster_N.dtype.kind not in "iu" or cluster_N.min() < 0:
        raise ValueError("Expected clusters that are integers from 0.")
    return cost_N, cluster_N.astype(np.min_scalar_type(int(cluster_N.max())))
