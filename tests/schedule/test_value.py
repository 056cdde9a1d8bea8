import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpod_jax.data.records import Ragged
from kpod_jax.schedule import value
from kpod_jax.utils.errors import UserError

STEPS = Ragged.from_list([[3.0, 1.0, 2.0], [], [5.0]], np.float64)


def test_remaining_difficulty_is_the_sum_of_the_steps_from_the_start_step_on():
    def remaining(*start_steps):
        return value.remaining_difficulty(STEPS, np.array(start_steps, np.int32)).tolist()

    assert remaining(0, 0, 0) == [6, 0, 5]
    assert remaining(1, 0, 1) == [3, 0, 0]
    assert remaining(2, 0, 0) == [2, 0, 5]
    assert remaining(3, 0, 1) == [0, 0, 0]


def test_next_step_difficulty_is_the_last_input_step():
    start_steps = np.array([2, 0, 1], np.int32)
    assert value.next_step_difficulty(STEPS, start_steps, np.array([0, 2])).tolist() == [1, 5]
    assert value.next_step_difficulty(STEPS, start_steps, np.array([2])).tolist() == [5]


def test_target_difficulty_by_hand():
    # B = 100, C0 = 30, T = 4, p = 1: D(t) = 30 + 70 (t / 4)^2.
    targets = [
        value.target_difficulty(t, 100.0, ramp_phases=4, p=1, initial_fraction=0.3)
        for t in range(7)
    ]
    assert targets == pytest.approx([30, 34.375, 47.5, 69.375, 100, 100, 100])
    # The paper's p: 30 + 70 * 0.25^1.5.
    quarter = value.target_difficulty(1, 100.0, ramp_phases=4, p=0.5, initial_fraction=0.3)
    assert quarter == pytest.approx(38.75)


@given(
    total=st.floats(0, 1e6),
    phases=st.integers(1, 20),
    p=st.floats(-0.5, 3),
    share=st.floats(0, 1),
)
@settings(deadline=None)
def test_target_difficulty_is_the_integral_of_the_papers_velocity(total, phases, p, share):
    initial = share * total
    u = (total - initial) * (p + 1) / phases ** (p + 1)
    targets = [
        value.target_difficulty(t, total, ramp_phases=phases, p=p, initial_fraction=share)
        for t in range(phases + 1)
    ]
    # Eq. 10 as it is printed: u t^(p+1) / (p + 1) + C0.
    for t, target in enumerate(targets):
        assert target == pytest.approx(u * t ** (p + 1) / (p + 1) + initial)
    # Its velocity is u t^p: by the midpoint rule; in the first phase t^p may be too steep for it.
    for t in range(2, phases + 1):
        middles = t - 1 + (np.arange(1000) + 0.5) / 1000
        grown = float((u * middles**p).mean())
        assert targets[t] - targets[t - 1] == pytest.approx(grown, rel=1e-4, abs=1e-6 * (1 + total))


def test_target_difficulty_without_a_ramp_is_the_whole():
    assert value.target_difficulty(0, 7.0, ramp_phases=0, p=0.5, initial_fraction=0.3) == 7.0


def test_selection_value_by_hand():
    cost, cluster = np.array([1.0, 2.0, 4.0]), np.array([0, 0, 2])
    both = value.selection_value(np.array([True, True, False]), cost, cluster, 5.0, 12.0)
    assert both == pytest.approx(-(5 - 3) + 12 * math.sqrt(2))
    spread = value.selection_value(np.array([True, False, True]), cost, cluster, 5.0, 12.0)
    assert spread == pytest.approx(24)
    assert value.selection_value(np.zeros(3, bool), cost, cluster, 5.0, 12.0) == -5


@given(
    st.lists(st.lists(st.floats(0, 1e3), max_size=4), max_size=30),
    st.randoms(use_true_random=False),
)
@settings(deadline=None)
def test_sums_on_the_exact_grid_do_not_depend_on_the_order(slices, random):
    difficulty = Ragged.from_list(slices, np.float64)
    grid = value.on_exact_grid(difficulty)
    np.testing.assert_array_equal(value.on_exact_grid(grid).values, grid.values)
    np.testing.assert_array_equal(grid.offsets, difficulty.offsets)
    if not grid.values.size:
        return
    moved = np.abs(grid.values - difficulty.values).max()
    bound = grid.values.size * difficulty.values.max() * 2.0**-51
    assert moved <= max(bound, 2.0**-1000)
    values = grid.values.tolist()
    shuffled = random.sample(values, len(values))
    assert sum(values) == sum(shuffled) == math.fsum(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1])
def test_a_bad_difficulty_is_named(bad):
    difficulty = Ragged.from_list([[1.0], [], [1.0, bad], [bad]], np.float64)
    with pytest.raises(UserError, match=r"Step 1 of example 2 .* 1 other steps"):
        value.on_exact_grid(difficulty)
