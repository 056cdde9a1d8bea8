from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpod_jax.data.records import Ragged
from kpod_jax.schedule import curricula, kpod, value
from kpod_jax.utils.errors import UserError

PAPER: dict[str, Any] = {"p": 0.5, "initial_fraction": 0.3, "beta": 12.0}


def ragged(*slices):
    return Ragged.from_list(slices, np.float64)


@st.composite
def settings_of_kpod(draw):
    slices = draw(st.lists(st.lists(st.floats(0, 50), max_size=5), max_size=12))
    clusters = draw(st.lists(st.integers(0, 3), min_size=len(slices), max_size=len(slices)))
    return {
        "difficulty": ragged(*slices),
        "clusters": np.array(clusters, np.int32),
        "ramp_phases": draw(st.integers(0, 6)),
        "p": draw(st.floats(-0.5, 2)),
        "initial_fraction": draw(st.floats(0, 1)),
        "beta": draw(st.sampled_from([0.0, 1.0, 12.0])),
        "solver": draw(st.sampled_from(["greedy", "ftgp"])),
    }


@given(setting=settings_of_kpod())
@settings(deadline=None)
def test_what_holds_of_every_kpod_schedule(setting):
    phases = setting["ramp_phases"] + 3
    difficulty = setting["difficulty"]
    plan = curricula.plan(kpod.KPOD(**setting), phases, difficulty)
    start = plan.start_steps
    assert start.dtype == np.int32 and start.shape == (phases, len(difficulty))
    assert np.all(start >= 0) and np.all(start <= difficulty.lengths)
    # No tolerance: the budget is never overdrawn, and it only grows.
    assert plan.target is not None
    assert np.all(plan.remaining <= plan.target)
    assert np.all(np.diff(plan.target) >= 0)
    # Steps become output and stay it, at most one a phase until the ramp's end, when all do.
    advance = -np.diff(start, axis=0)
    assert np.all(advance >= 0)
    assert np.all(advance[: max(setting["ramp_phases"] - 1, 0)] <= 1)
    assert not start[setting["ramp_phases"] :].any()
    # Nothing that fits is left behind: at phase 0, and at later phases of those that stood still.
    grid = value.on_exact_grid(difficulty)
    for phase in range(setting["ramp_phases"]):
        still = start[phase] > 0
        if phase > 0:
            still &= start[phase] == start[phase - 1]
        able = np.flatnonzero(still)
        cost = value.next_step_difficulty(grid, start[phase], able)
        assert np.all(cost > plan.target[phase] - plan.remaining[phase])


@given(setting=settings_of_kpod(), random=st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_the_examples_does_not_matter(setting, random):
    difficulty, size = setting["difficulty"], len(setting["difficulty"])
    # All costs differ: the fraction of each is its own.
    steps = len(difficulty.values)
    fractions = np.array(random.sample(range(steps), steps)) / 64
    setting["difficulty"] = Ragged(np.floor(difficulty.values) + fractions, difficulty.offsets)
    order = random.sample(range(size), size)
    permuted = {
        **setting,
        "difficulty": ragged(*(setting["difficulty"][i] for i in order)),
        "clusters": setting["clusters"][order],
    }
    for phase in range(setting["ramp_phases"] + 1):
        start = kpod.KPOD(**setting).start_steps(phase)
        np.testing.assert_array_equal(kpod.KPOD(**permuted).start_steps(phase), start[order])


@pytest.mark.parametrize("solver", ["greedy", "ftgp"])
def test_three_examples_worked_through_by_hand(solver):
    # Questions 0 and 1 are of one cluster. B = 6 + 8 + 6 = 20.
    difficulty = ragged([2.0, 3.0, 1.0], [6.0, 2.0], [2.5, 3.5])
    # p = 1, C0 = 5, T = 3: D(t) = 5 + 15 (t / 3)^2 = 5, 6.67, 11.67, 20.
    curriculum = kpod.KPOD(
        difficulty,
        np.array([0, 0, 1]),
        ramp_phases=3,
        p=1.0,
        initial_fraction=0.25,
        beta=12.0,
        solver=solver,
    )
    plan = curricula.plan(curriculum, 5, difficulty)
    assert plan.target is not None
    np.testing.assert_allclose(plan.target, [5, 5 + 15 / 9, 5 + 60 / 9, 20, 20])
    assert plan.start_steps.tolist() == [
        # From c = 3, 2, 2 and 0 nats. The last steps cost 1, 2, 3.5 and 5 are to be had. The values
        # of {0, 2} 4.5 + 2β, {0, 1} 3 + sqrt(2)β: {0, 2}. Now 0.5 are left and nothing fits.
        [2, 2, 1],
        # 2.17 are to be had, the next steps cost 3, 2, 2.5: {1}, 0.17 left.
        [2, 1, 1],
        # 5.17 are to be had, the next steps cost 3, 6, 2.5: {0} and {2} fit alone, and 0 is worth
        # more by its cost, but 2 has the higher density (1 + β / 2.5 against 1 + β / 3). With
        # thresholds of ε = 0.1 too: after 2, 2.67 are left and 0 no longer fits. The augmentation
        # then replaces 2 by 0, for 3 + β is more than 2.5 + β.
        [1, 1, 1],
        # The ramp has ended.
        [0, 0, 0],
        [0, 0, 0],
    ]
    assert plan.remaining.tolist() == [4.5, 6.5, 9.5, 20, 20]


def test_spread_over_clusters_rises_with_beta():
    # Cluster 0 has the easiest last steps; only diversity makes the others advance.
    difficulty = ragged(*[[20.0, 1.0]] * 6, *[[20.0, 1.5]] * 3, *[[20.0, 1.75]] * 3)
    clusters = np.repeat([0, 1, 2], [6, 3, 3])

    def reached(beta):
        curriculum = kpod.KPOD(
            difficulty, clusters, ramp_phases=5, p=0.5, initial_fraction=6.5 / 267.75, beta=beta
        )
        advanced = curriculum.start_steps(0) < difficulty.lengths
        return np.bincount(clusters[advanced], minlength=3)

    assert np.count_nonzero(reached(0.0)) == 1
    assert np.count_nonzero(reached(12.0)) == 3


def test_stages_may_be_asked_in_any_order_and_are_read_only():
    difficulty = ragged([1.0, 2.0, 3.0], [3.0, 1.5], [0.5])
    clusters = np.array([0, 1, 0])
    there = kpod.KPOD(difficulty, clusters, ramp_phases=4, **PAPER)
    back = kpod.KPOD(difficulty, clusters, ramp_phases=4, **PAPER)
    forward = [there.start_steps(phase).tolist() for phase in range(6)]
    backward = [back.start_steps(phase).tolist() for phase in reversed(range(6))]
    assert forward == backward[::-1]
    with pytest.raises(ValueError, match="read-only"):
        there.start_steps(0)[0] = 7
    with pytest.raises(ValueError, match="negative"):
        there.start_steps(-1)


def test_single_precision_difficulties_of_a_file_keep_the_budget():
    values = np.random.default_rng(0).gamma(2.0, 1.0, 3000).astype(np.float32)
    difficulty = Ragged(values, np.arange(0, 3001, 3))
    clusters = np.arange(1000) % 5
    curriculum = kpod.KPOD(difficulty, clusters, ramp_phases=10, **PAPER)
    plan = curricula.plan(curriculum, 11, difficulty)
    assert plan.target is not None
    assert np.all(plan.remaining <= plan.target)
    # The budget is used up to less than the easiest of the steps that wait.
    assert plan.target[0] - plan.remaining[0] < 1e-3 * plan.target[0]
    assert plan.remaining[-1] == plan.target[-1] == pytest.approx(values.sum(dtype=np.float64))


def test_no_examples_and_examples_without_steps():
    empty = ragged()
    curriculum = kpod.KPOD(empty, np.zeros(0, int), ramp_phases=2, **PAPER)
    assert curricula.plan(curriculum, 3, empty).start_steps.shape == (3, 0)
    bare = ragged([], [])
    curriculum = kpod.KPOD(bare, np.zeros(2, int), ramp_phases=2, **PAPER)
    assert not curricula.plan(curriculum, 2, bare).start_steps.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ramp_phases": -1}, r"ramp_phases=-1; .* at least 0"),
        ({"p": -1.0}, r"p=-1.0; .* above -1"),
        ({"p": float("nan")}, "p=nan"),
        ({"initial_fraction": 1.01}, r"initial_fraction=1.01; .* in \[0, 1\]"),
        ({"beta": -0.5}, r"beta=-0\.5; .*Eq\. 12"),
        ({"clusters": np.array([0])}, r"clusters of 2 examples have shape \(1,\)"),
        ({"clusters": np.array([0.0, 1.0])}, "float64; expected one integer"),
        ({"clusters": np.array([0, -3])}, "Example 1 .* cluster -3"),
        ({"difficulty": ragged([1.0], [float("nan")])}, "Step 0 of example 1"),
    ],
)
def test_a_bad_setting_is_named_with_what_was_expected(change, message):
    setting = {
        "difficulty": ragged([1.0], [2.0]),
        "clusters": np.array([0, 1]),
        "ramp_phases": 2,
        **PAPER,
        **change,
    }
    with pytest.raises(UserError, match=message):
        kpod.KPOD(**setting)
