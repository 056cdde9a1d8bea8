"""Runs against each other, from hand-made predictions."""

import itertools
import json
import math

import numpy as np
import pytest
from absl.testing import flagsaver
from hypothesis import given
from hypothesis import strategies as st

from kpod_jax import main
from kpod_jax.evaluation import intervals, significance
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError


def predictions(root, name, right, **changes):
    """Writes a run whose answers are right where the string `right` has a 1; gives its path."""
    rows = [
        {"id": f"q{i}", "question": f"{i} + 1?", "gold": str(i + 1), "correct": mark == "1"}
        for i, mark in enumerate(right)
        if mark in "01"
    ]
    for row in rows:
        row.update(changes.get(row["id"], {}))
    files.write_jsonl(root / name / "predictions" / "test.jsonl", rows)
    return str(root / name)


def compared(root, *runs, **options):
    significance.compare(list(runs), output=root / "out", **options)
    return json.loads((root / "out" / "comparison.json").read_text())


def test_two_runs_by_hand(tmp_path):
    a = predictions(tmp_path, "a", "1111111100")
    b = predictions(tmp_path, "b", "1100000010")
    result = compared(tmp_path, a, b)
    (row,) = result["comparisons"]
    assert row["mcnemar"] == {"both": 2, "only_a": 6, "only_b": 1, "neither": 1}
    # Two-sided, of 7 discordant pairs: 2 (C(7,0) + C(7,1)) / 2^7.
    assert row["p"] == pytest.approx(2 * 8 / 128)
    assert row["p_holm"] == row["p"]
    assert row["difference"] == pytest.approx(0.5)
    assert row["a_better"] == [f"q{i}" for i in range(2, 8)] and row["b_better"] == ["q8"]
    assert [run["accuracy"] for run in result["runs"]] == [0.8, 0.3]
    assert result["runs"][0]["interval"] == list(intervals.wilson_interval(8, 10))
    assert result["missing"] == {}
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| A correct | 2 | 6 |\n| A wrong | 1 | 1 |" in text
    # p = 0.125: nothing may be claimed, in either direction.
    assert "No significant difference between a and b" in text and "equally good" in text


def test_a_difference_that_is_shown_names_the_better_run(tmp_path):
    a = predictions(tmp_path, "worse", "0" * 30 + "1" * 20)
    b = predictions(tmp_path, "better", "1" * 30 + "1" * 20)
    (row,) = compared(tmp_path, a, b)["comparisons"]
    assert row["p"] == pytest.approx(2 / 2**30)
    assert row["difference"] == -0.6 and row["interval"][1] < 0
    assert row["verdict"].startswith("better is 60.0 percentage points more accurate than worse")
    assert "not for other data or other seeds" in row["verdict"]


def test_the_bootstrap_is_that_of_resampled_seeds_and_questions():
    """Against resampling by indices, whose limits agree up to Monte Carlo error."""
    rng = np.random.default_rng(7)
    chance_a, chance_b = rng.random((3, 1)), rng.random((2, 1))  # Seeds that differ much.
    a, b = rng.random((3, 40)) < chance_a, rng.random((2, 40)) < chance_b
    plain = []
    for _ in range(20_000):
        questions = rng.integers(0, 40, 40)
        drawn = (x[rng.integers(0, len(x), len(x))][:, questions].mean() for x in (a, b))
        plain.append(tuple(drawn))
    found = significance.resampled(a, b) / np.array([[a.size], [b.size]])
    assert found.shape == (2, significance.RESAMPLES)
    for ours, theirs in (*zip(found, np.transpose(plain), strict=True),
                         (found[0] - found[1], np.subtract(*np.transpose(plain)))):  # fmt: skip
        assert ours.mean() == pytest.approx(theirs.mean(), abs=0.005)
        assert ours.std() == pytest.approx(theirs.std(), rel=0.03)
        for share in (0.025, 0.975):
            assert np.quantile(ours, share) == pytest.approx(np.quantile(theirs, share), abs=0.02)
    np.testing.assert_array_equal(significance.resampled(a, b), significance.resampled(a, b))


def test_equal_trainings_have_no_more_spread_than_one():
    right = np.random.default_rng(0).random(200) < 0.4
    one, three = (significance.resampled(np.tile(right, (n, 1)))[0] / (200 * n) for n in (1, 3))
    assert np.std(three) == pytest.approx(np.std(one), rel=0.03)


def test_holm_by_hand():
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([0.6, 0.7]) == [1, 1]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_bounded_and_keeps_the_order(p_values):
    adjusted = significance.holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1, p * len(p_values) + 1e-12)
    order = np.argsort(p_values, kind="stable")
    assert all(adjusted[i] <= adjusted[j] for i, j in itertools.pairwise(order))


def test_more_runs_are_held_against_the_first_with_holm(tmp_path):
    a = predictions(tmp_path, "a", "1" * 12 + "0" * 8)
    b = predictions(tmp_path, "b", "1" * 6 + "0" * 14)  # 6 discordant, all for a: p = 1/32.
    c = predictions(tmp_path, "c", "1" * 4 + "0" * 16)  # 8 discordant: p = 1/128.
    first, second = compared(tmp_path, a, b, c)["comparisons"]
    assert (first["a"], first["b"], second["a"], second["b"]) == ("a", "b", "a", "c")
    assert first["p"] == pytest.approx(1 / 32) and first["p_holm"] == pytest.approx(1 / 32)
    assert second["p"] == pytest.approx(1 / 128) and second["p_holm"] == pytest.approx(2 / 128)
    # Without the second comparison, the first's p-value would not have been larger; with another
    # one of the same size it is doubled, and nothing is shown any more.
    d = predictions(tmp_path, "d", "0" * 6 + "1" * 6 + "0" * 8)
    first, second = compared(tmp_path, a, b, d)["comparisons"]
    assert first["p_holm"] == pytest.approx(1 / 16)
    assert first["verdict"].startswith("No significant difference")


def test_seeds_are_paired_on_their_mean(tmp_path):
    a0 = predictions(tmp_path, "a0", "1110" * 10)
    a1 = predictions(tmp_path, "a1", "1100" * 10)
    b0 = predictions(tmp_path, "b0", "1000" * 10)
    b1 = predictions(tmp_path, "b1", "0100" * 10)
    b2 = predictions(tmp_path, "b2", "0000" * 10)
    result = compared(tmp_path, f"{a0}+{a1}", f"{b0}+{b1}+{b2}")
    assert [run["name"] for run in result["runs"]] == ["a0+a1", "b0+b1+b2"]
    assert [run["accuracy"] for run in result["runs"]] == pytest.approx([5 / 8, 1 / 6])
    assert [seed["correct"] for seed in result["runs"][1]["seeds"]] == [10, 10, 0]
    low, high = result["runs"][0]["interval"]
    assert low < 5 / 8 < high
    (row,) = result["comparisons"]
    assert row["mcnemar"] is None
    assert row["difference"] == pytest.approx(5 / 8 - 1 / 6)
    # Per question +2/3, +2/3, +1/2, 0: nothing goes the other way in any resample.
    assert len(row["a_better"]) == 30 and row["b_better"] == []
    assert row["p"] == pytest.approx(2 / (significance.RESAMPLES + 1))
    assert "for the means over seeds" in row["verdict"]
    assert row["verdict"].endswith("not for other data.")
    (row,) = compared(tmp_path, f"{a0}+{a1}", b2)["comparisons"]
    assert row["seeds"] == [2, 1]
    assert row["verdict"].endswith("not for other data or other seeds.")


def test_seeds_whose_means_are_equal_differ_nowhere(tmp_path):
    a = [predictions(tmp_path, f"a{i}", mark * 5) for i, mark in enumerate("100")]
    b = [predictions(tmp_path, f"b{i}", mark * 5) for i, mark in enumerate("010")]
    (row,) = compared(tmp_path, "+".join(a), "+".join(b))["comparisons"]
    assert (row["difference"], row["p"], row["a_better"], row["b_better"]) == (0, 1, [], [])


def test_missing_questions_are_named_and_the_shared_ones_compared(tmp_path):
    a = predictions(tmp_path, "a", "11 01")
    b = predictions(tmp_path, "b", "1001 ")
    result = compared(tmp_path, a, b)
    assert result["questions"] == 3
    assert result["missing"] == {a: ["q2"], b: ["q4"]}
    assert result["comparisons"][0]["mcnemar"] == {
        "both": 1, "only_a": 1, "only_b": 1, "neither": 0,
    }  # fmt: skip
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "b lacks 1 questions, which are left out: q4" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"q1": {"question": "1 + 2?"}}, "The question of q1 differs"),
        ({"q1": {"gold": "7"}}, "The gold answer of q1 differs"),
        ({f"q{i}": {"id": f"other{i}"} for i in range(4)}, "No test question has the same id"),
        ({"q3": {"id": "q0"}}, "test.jsonl:4 q0 is repeated"),
        ({"q3": {"correct": "yes"}}, "test.jsonl:4 q3 has a 'correct' that is not true or false"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(tmp_path, change, said):
    a = predictions(tmp_path, "a", "1100")
    b = predictions(tmp_path, "b", "1010", **change)
    with pytest.raises(UserError) as error:
        compared(tmp_path, a, b)
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_said(tmp_path):
    a = predictions(tmp_path, "a", "1100")
    with pytest.raises(UserError, match="needs at least two work directories"):
        significance.compare([a])
    with pytest.raises(UserError, match="available: test"):
        significance.compare([a, a], "validation")
    with pytest.raises(UserError, match="available: none"):
        significance.compare([a, str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="empty directory"):
        significance.compare([a, ""])


def test_a_comparison_of_something_else_is_not_lost(tmp_path):
    a, b = predictions(tmp_path, "a", "1100"), predictions(tmp_path, "b", "1000")
    files.write_json(tmp_path / "out" / "comparison.json", [{"method": "kpod"}])
    with pytest.raises(UserError, match="choose a different folder with --output"):
        significance.compare([a, b], output=tmp_path / "out")
    assert files.read_json(tmp_path / "out" / "comparison.json") == [{"method": "kpod"}]
    significance.compare([a, b])  # Into the first run's directory, and once more over it.
    significance.compare([a, b])
    assert files.read_json(tmp_path / "a" / "comparison.json")["questions"] == 4


def test_directories_of_the_same_name_and_with_a_plus(tmp_path):
    a = predictions(tmp_path / "x", "run", "11")
    b = predictions(tmp_path / "y", "run", "10")
    c = predictions(tmp_path, "c+d", "00")
    result = compared(tmp_path, a, b, c)
    assert [run["name"] for run in result["runs"]] == [a, b, c]
    assert len(result["runs"][2]["seeds"]) == 1


def test_ids_bring_no_markup(tmp_path):
    hostile = "<script>|\nalert(1)"
    a = predictions(tmp_path, "a", "10", q0={"id": hostile})
    b = predictions(tmp_path, "b", "00", q0={"id": hostile})
    text, _ = significance.compare([a, b])
    assert "&lt;script&gt;\\| alert(1)" in text and "<script>" not in text


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_the_table_adds_up_and_exchanging_the_runs_turns_the_signs(pairs):
    def method(name, side):
        rows = {
            str(i): {"question": "", "gold": "", "correct": p[side]} for i, p in enumerate(pairs)
        }
        return significance.Method(name, (name,), (rows,))

    a, b = method("a", 0), method("b", 1)
    there = significance.paired([a, b], "test")["comparisons"][0]
    back = significance.paired([b, a], "test")["comparisons"][0]
    table = there["mcnemar"]
    assert sum(table.values()) == len(pairs)
    assert there["difference"] == pytest.approx((table["only_a"] - table["only_b"]) / len(pairs))
    assert (there["difference"], there["p"]) == (-back["difference"], back["p"])
    low, high = there["interval"]
    assert low - 1e-9 <= there["difference"] <= high + 1e-9 or math.isclose(low, high)
    assert ("No significant difference" in there["verdict"]) == (
        "No significant difference" in back["verdict"]
    )


def test_the_command_needs_neither_configuration_nor_work_directory(tmp_path, capsys):
    a, b = predictions(tmp_path, "a", "1100"), predictions(tmp_path, "b", "1000")
    flags = ["main", "--mode=compare", f"--runs={a},{b}", f"--output={tmp_path / 'out'}"]
    with flagsaver.flagsaver():
        main.parse_flags(flags)
        main.main(["main"])
    printed = capsys.readouterr().out
    assert "# Comparison on 4 test questions" in printed
    assert printed.rstrip().endswith("comparison.md")
