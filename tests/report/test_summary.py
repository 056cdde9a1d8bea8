import numpy as np
import pytest

from kpod_jax.data.records import Ragged, Record
from kpod_jax.evaluation import intervals
from kpod_jax.report import summary
from tests.report import workdirs


def test_a_single_run_is_a_method():
    found = summary.method(workdirs.results("kpod", 0, 30))
    assert (found.name, found.mean, found.accuracies) == ("KPOD", 0.6, (0.6,))
    assert found.interval == pytest.approx((0.47, 0.73)) and found.total == 50
    assert summary.method(workdirs.results("mine", 0, 30)).name == "Mine"


def test_the_rows_of_a_resumed_run_replace_the_earlier_ones():
    rows = [
        {"stage": "distill", "step": 10, "loss": 3.0},
        {"stage": "distill", "step": 20, "loss": 2.0},
        {"stage": "weigh", "step": 30, "loss": 9.0},
        {"stage": "distill", "step": 20, "loss": 1.5},
        {"stage": "distill", "step": 20, "validation_accuracy": 0.5},
    ]
    steps, losses = summary.series(rows, "distill", "loss")
    assert steps.tolist() == [10, 20] and losses.tolist() == [3.0, 1.5]


def test_running_mean_is_shorter_at_the_ends():
    assert summary.running_mean(np.array([1.0, 2, 6, 3]), 3).tolist() == [1.5, 3, 11 / 3, 4.5]


def test_words_are_ranked_with_numbers_as_one():
    text = "Add 4 and 5. add"
    record = Record("a", "q", (text,), "9")
    spans = [(0, 3), (4, 5), (6, 9), (10, 11), (11, 12), (13, 16)]
    weights = [0.8, 1.0, 0.1, 0.9, 0.0, 0.6]
    heavy, light, fewest = summary.word_means(
        [record], Ragged.from_list([spans]), Ragged.from_list([weights]), 2
    )
    assert [(m.word, round(m.weight, 3), m.count) for m in heavy] == [
        (summary.NUMBER, 0.95, 2), ("add", 0.7, 2),
    ]  # fmt: skip
    assert [m.word for m in light] == [".", "and"]
    assert fewest == 1


def test_hardest_steps_and_step_numbers():
    records = [Record("a", "q", ("1 ", "2 "), "y"), Record("b", "q", ("1 ", "2 ", "3"), "y")]
    difficulty = Ragged.from_list([[0.1, 2.0], [1.0, 0.2, 3.0]])
    found = summary.hardest_steps(records, difficulty, 2)
    assert [(s.record.id, s.number, s.difficulty) for s in found] == [("b", 3, 3.0), ("a", 2, 2.0)]
    assert summary.step_numbers(difficulty).tolist() == [1, 2, 1, 2, 3]


def test_groups_have_means_and_quartiles():
    groups = summary.grouped(np.array([2, 1, 2, 2]), np.array([1.0, 7, 2, 6]))
    assert groups.x.tolist() == [1, 2]
    assert groups.mean.tolist() == [7, 3]
    assert groups.low.tolist() == [7, 1.5] and groups.high.tolist() == [7, 4]


def test_bands_are_over_the_steps_that_all_runs_have():
    runs = [
        (np.array([10, 20, 30]), np.array([4.0, 2.0, 1.0])),
        (np.array([10, 20]), np.array([6.0, 2.0])),
        (np.array([5, 15, 25]), np.array([5.0, 5.0, 3.0])),
    ]
    steps, mean, spread = summary.band(runs)
    assert steps.tolist() == [10, 20]
    assert mean.tolist() == [5.0, pytest.approx((2 + 2 + 4) / 3)]
    assert spread == pytest.approx([1.0, np.std([2, 2, 4], ddof=1)])
    assert summary.band(runs[:1])[2].tolist() == [0, 0, 0]


def test_phases_of_a_training():
    rows = [
        {"stage": "weigh", "step": 1, "loss": 9.0},
        {"stage": "distill", "step": 1, "loss": 3.0, "phase": 0, "mean_start_step": 2.0},
        {"stage": "distill", "step": 2, "loss": 1.0, "phase": 0, "mean_start_step": 2.0},
        {"stage": "distill", "step": 2, "validation_accuracy": 0.5},
        {"stage": "distill", "step": 3, "loss": 1.0, "phase": 1, "mean_start_step": 0.0},
        {"stage": "distill", "step": 4, "loss": 1.0, "phase": 2, "mean_start_step": 0.0},
    ]
    first, second, _ = summary.by_phase(rows)
    assert first == (0, 1, 2, 2.0, 2.0, None, 0.5)
    assert (second.number, second.first, second.last, second.accuracy) == (1, 3, 3, None)
    assert summary.phase_starts(rows) == [2]
    assert summary.by_phase([{"stage": "distill", "step": 1, "loss": 1.0}]) == []


def test_accuracy_by_group():
    groups = summary.accuracy_by(np.array([1, 1, 2, 2]), np.array([1.0, 0, 1, 1]))
    assert groups.x.tolist() == [1, 2] and groups.mean.tolist() == [0.5, 1.0]
    assert (groups.low[0], groups.high[0]) == intervals.wilson_interval(1, 2)
