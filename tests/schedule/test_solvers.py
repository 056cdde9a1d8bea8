"""Both solvers against every subset of small instances. Costs are whole, so that sums are exact."""

import functools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kpod_jax.schedule import solvers, value

EPSILON = 0.3
FAST = {
    "greedy": solvers.greedy,
    "ftgp": solvers.ftgp,
    "ftgp with large ε": functools.partial(solvers.ftgp, epsilon=EPSILON),
}
SHARES = {"greedy": 0.5, "ftgp": 0.4, "ftgp with large ε": 0.5 - EPSILON}

fast = pytest.mark.parametrize("name", FAST)


@st.composite
def instances(draw):
    size = draw(st.integers(0, 9))
    largest = draw(st.sampled_from([1, 5, 100]))
    cost = draw(st.lists(st.integers(0, largest), min_size=size, max_size=size))
    cluster = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    budget = draw(st.integers(-1, sum(cost) + 1))
    beta = draw(st.sampled_from([0.0, 0.01, 1.0, 12.0, 1e6]))
    return np.array(cost, np.float64), np.array(cluster, np.int32), float(budget), beta


def worth(selected, cost, cluster, budget, beta):
    """F(S) - F(∅)."""
    return value.selection_value(selected, cost, cluster, budget, beta) + budget


@fast
@given(instance=instances())
# Density prefers the example of cost 1, beside which the one of cost 100 no longer fits.
@example(instance=(np.array([1.0, 100.0]), np.array([0, 1]), 100.0, 0.1))
@example(instance=(np.zeros(4), np.array([0, 0, 1, 1]), 0.0, 12.0))
@example(instance=(np.full(6, 2.0), np.zeros(6, int), 7.0, 12.0))
@settings(deadline=None)
def test_a_solver_keeps_the_budget_its_guarantee_and_leaves_nothing_that_fits(name, instance):
    cost, cluster, budget, beta = instance
    selected = FAST[name](cost, cluster, budget, beta)
    assert selected.dtype == bool and selected.shape == cost.shape
    spent = cost[selected].sum()
    if budget < 0:
        assert not selected.any()
        return
    assert spent <= budget
    assert not np.any(cost[~selected] <= budget - spent)
    best = worth(solvers.exact(cost, cluster, budget, beta), *instance)
    assert worth(selected, *instance) >= SHARES[name] * best - 1e-9 * best


def test_thousands_of_instances_with_costs_of_every_kind_keep_the_guarantees():
    rng, seen = np.random.default_rng(0), dict.fromkeys(FAST, 1.0)
    for _ in range(2000):
        size = int(rng.integers(1, 11))
        cost = rng.gamma(rng.choice([0.2, 1.0, 5.0]), 1.0, size)
        cluster = rng.integers(0, 4, size)
        budget = float(cost.sum() * rng.uniform(0.05, 0.95))
        instance = cost, cluster, budget, float(rng.choice([0.0, 0.1, 1.0, 12.0]))
        best = worth(solvers.exact(*instance), *instance)
        for name, solve in FAST.items():
            selected = solve(*instance)
            assert cost[selected].sum() <= budget * (1 + 1e-12)
            if best > 0:
                seen[name] = min(seen[name], worth(selected, *instance) / best)
    assert all(SHARES[name] <= worst < 1 for name, worst in seen.items()), seen


@given(instance=instances())
@settings(deadline=None)
def test_exact_is_at_least_as_good_as_any_and_feasible(instance):
    cost, cluster, budget, beta = instance
    selected = solvers.exact(cost, cluster, budget, beta)
    assert not selected.any() if budget < 0 else cost[selected].sum() <= budget
    best = worth(selected, *instance)
    for solve in FAST.values():
        assert worth(solve(cost, cluster, budget, beta), *instance) <= best * (1 + 1e-12)


def increment(members, cluster, i):
    chosen = sum(cluster[j] == cluster[i] for j in members)
    return math.sqrt(chosen + 1) - math.sqrt(chosen)


def greedy_states(start, cost, cluster, budget, beta):
    """Density greedy as it is defined, one example at a time: the members after each."""
    states = [start]
    while able := fitting(states[-1], cost, budget):
        best = max(
            able, key=lambda i: (beta * increment(states[-1], cluster, i) / cost[i], -cost[i])
        )
        states.append([*states[-1], best])
    return states


def threshold_states(start, cost, cluster, budget, beta):
    """Passes of falling thresholds as they are defined, by cost within a pass."""

    def density(i):
        return 1 + beta * increment(states[-1], cluster, i) / cost[i]

    states = [start]
    threshold = max(map(density, fitting(start, cost, budget)), default=1.0)
    while fitting(states[-1], cost, budget):
        for i in np.argsort(cost):
            if i in fitting(states[-1], cost, budget) and density(i) >= threshold:
                states.append([*states[-1], int(i)])
        threshold *= 1 - EPSILON
    return states


def fitting(members, cost, budget):
    left = budget - cost[members].sum()
    return [i for i in range(len(cost)) if i not in members and cost[i] <= left]


@given(
    st.lists(st.floats(0, 1e300) | st.sampled_from([0.0, 1.0, 1.0 + 2**-52, 5e-324]), max_size=40)
)
def test_costs_are_sorted_as_a_stable_sort_does(cost):
    cost = np.array(cost, np.float64)
    np.testing.assert_array_equal(solvers._by_cost(cost), np.argsort(cost, kind="stable"))


@pytest.mark.parametrize(
    ("name", "states_from"),
    [("greedy", greedy_states), ("ftgp with large ε", threshold_states)],
)
@given(
    examples=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2)), max_size=10),
    share=st.floats(0, 1),
    beta=st.sampled_from([0.0, 0.1, 1.0, 12.0]),
)
# Rare: the thresholds decide the result; what is passed over decides it.
@example(examples=[(30, 0), (14, 0), (24, 1), (19, 0)], share=0.82, beta=12.0)
@example(examples=[(4, 2), (3, 2), (4, 2), (5, 2), (10, 1)], share=0.64, beta=0.1)
@settings(deadline=None)
def test_a_solver_chooses_what_its_definition_does(name, states_from, examples, share, beta):
    # Fractions of powers of two: no two subsets cost the same, so there are no ties.
    cost = np.array([base + 0.5 ** (i + 1) for i, (base, _) in enumerate(examples)])
    cluster = np.array([label for _, label in examples], int)
    budget = share * cost.sum()
    labels = cluster if beta else np.zeros(len(cost))

    def total(members):
        selected = np.isin(np.arange(len(cost)), members)
        return worth(selected, cost, cluster, budget, beta)

    states = states_from([], cost, labels, budget, beta)
    augmented = [[*state, i] for state in states for i in fitting(state, cost, budget)]
    best = max(augmented, key=total, default=states[-1])
    if total(best) > total(states[-1]) + 1e-9:
        states = states_from(best, cost, labels, budget, beta)
    expected = np.isin(np.arange(len(cost)), states[-1])
    selected = FAST[name](cost, cluster, budget, beta)
    np.testing.assert_array_equal(selected, expected)


def test_exact_by_hand():
    cost, cluster = np.array([3.0, 4.0, 5.0]), np.array([0, 0, 1])
    # Budget 9: {3, 5} is worth 8 + 2β, {4, 5} 9 + 2β, {3, 4} 7 + sqrt(2) β.
    assert solvers.exact(cost, cluster, 9.0, 1.0).tolist() == [False, True, True]
    # Budget 8: {3, 5} fits exactly.
    assert solvers.exact(cost, cluster, 8.0, 1.0).tolist() == [True, False, True]


def test_greedy_by_hand():
    # Densities - 1, over β: 1/1 and 0.414/2 in cluster 0, 1/3 and 0.414/3 in cluster 1.
    cost, cluster = np.array([3.0, 1.0, 3.0, 2.0]), np.array([1, 0, 1, 0])
    # So it takes 1 and 3 (spent 4); nothing else fits into 5. No augmentation beats 4 + 2β.
    assert solvers.greedy(cost, cluster, 5.0, 10.0).tolist() == [True, True, False, False]


@fast
def test_augmentation_rescues_the_one_large_example(name):
    selected = FAST[name](np.array([1.0, 100.0]), np.array([0, 1]), 100.0, 0.1)
    assert selected.tolist() == [False, True]


@fast
def test_after_the_augmentation_the_budget_is_filled(name):
    # By density: seven of the ones, the 5, the other ones, and the 90 no longer fits. Seven ones
    # and the 90 are worth more; beside them the 5 does not fit, the last three ones do.
    cost, cluster = np.array([1.0] * 10 + [5.0, 90.0]), np.array([0] * 10 + [1, 2])
    selected = FAST[name](cost, cluster, 100.0, 0.01)
    assert selected.tolist() == [True] * 10 + [False, True]


@fast
def test_diversity_spreads_the_choice_and_without_it_clusters_do_not_matter(name):
    cost, cluster = np.array([1.0, 1.0, 1.0, 1.0, 1.1, 1.1]), np.array([0, 0, 0, 0, 1, 1])
    diverse = FAST[name](cost, cluster, 2.1, 12.0)
    assert np.bincount(cluster[diverse]).tolist() == [1, 1]
    plain = FAST[name](cost, cluster, 2.1, 0.0)
    np.testing.assert_array_equal(plain, FAST[name](cost, np.zeros(6, int), 2.1, 0.0))


@fast
def test_of_equal_examples_the_first_is_chosen(name):
    assert FAST[name](np.ones(4), np.zeros(4, int), 2.0, 12.0).tolist() == [1, 1, 0, 0]


@fast
@given(instance=instances(), random=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_examples_does_not_matter_where_costs_differ(name, instance, random):
    cost, cluster, budget, beta = instance
    cost = cost * 16 + np.arange(len(cost))
    order = np.array(random.sample(range(len(cost)), len(cost)), int)
    selected = FAST[name](cost, cluster, 16 * budget, beta)
    np.testing.assert_array_equal(
        FAST[name](cost[order], cluster[order], 16 * budget, beta), selected[order]
    )


@fast
def test_any_integers_are_clusters_and_lists_are_arrays(name):
    assert FAST[name]([1.0, 2.0], [70_000, 3], 10.0, 1.0).tolist() == [True, True]
    assert FAST[name](np.zeros(0), np.zeros(0, int), 1.0, 1.0).shape == (0,)


@pytest.mark.parametrize("solve", [*FAST.values(), solvers.exact], ids=[*FAST, "exact"])
@pytest.mark.parametrize(
    ("cost", "cluster", "beta", "message"),
    [
        ([1.0, 2.0], [0], 1.0, r"shape \[N\], got"),
        ([[1.0]], [[0]], 1.0, r"shape \[N\], got"),
        ([-1.0], [0], 1.0, "finite costs"),
        ([np.nan], [0], 1.0, "finite costs"),
        ([np.inf], [0], 1.0, "finite costs"),
        ([1.0], [-1], 1.0, "integers from 0"),
        ([1.0], [0.5], 1.0, "integers from 0"),
        ([1.0], [0], -1.0, "beta"),
        ([1.0], [0], np.nan, "beta"),
    ],
)
def test_bad_arguments_are_refused(solve, cost, cluster, beta, message):
    with pytest.raises(ValueError, match=message):
        solve(np.array(cost), np.array(cluster), 1.0, beta)


def test_limits_of_exact_and_of_epsilon():
    with pytest.raises(ValueError, match="at most 16 examples, got 17"):
        solvers.exact(np.ones(17), np.zeros(17, int), 1.0, 1.0)
    for epsilon in (0.0, 1.0):
        with pytest.raises(ValueError, match="epsilon"):
            solvers.ftgp(np.ones(2), np.zeros(2, int), 1.0, 1.0, epsilon)
