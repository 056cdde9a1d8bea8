"""Other explanations of the built-in task's problems, and explanations of other numbers."""

import dataclasses
from typing import Any

import pytest

from kpod_jax.data import arithmetic, sources
from kpod_jax.data.arithmetic import Task
from kpod_jax.data.steps import split_steps
from kpod_jax.evaluation import error_analysis

RECORDS = arithmetic.generate("train", 150)


def results(record):
    """The results of a rationale's operations in order, each of which must be a right one."""
    found = error_analysis.equations(record.rationale)
    assert all(equation.holds for equation in found)
    return [str(equation.result) for equation in found]


@pytest.mark.parametrize("task", [Task(), Task(0.0, (2, 6)), Task(1.0, (5, 6))])
def test_every_answer_follows_from_its_rationale(task):
    for record in arithmetic.generate("train", 60, task=task):
        assert results(record)[-1] == record.answer
        assert task.operations[0] <= len(results(record)) <= task.operations[1]
        assert split_steps(record.rationale) == record.steps
        starts = [step.split(":")[0] for step in record.steps]
        assert starts == [f"Step {k + 1}" for k in range(len(record.steps))]


def test_keypoints_are_the_numbers_and_operators_of_equations():
    for record in RECORDS:
        keys = [record.rationale[a:b] for a, b in record.keypoints or ()]
        assert all(key in ("plus", "minus", "times", "over", *"+-*/") for key in keys[1::4])
        assert all(key.isdigit() for place in (0, 2, 3) for key in keys[place::4])
        assert keys[3::4] == results(record)


def test_verbosity_changes_the_rationales_alone():
    plain, wordy = (arithmetic.generate("test", 50, task=Task(v)) for v in (0.0, 1.0))
    assert [r.question for r in plain] == [r.question for r in wordy]
    assert all(h > 0 for r in plain for h in r.hardness or ())
    assert sum(len(r.rationale) for r in wordy) > 2 * sum(len(r.rationale) for r in plain)


def test_the_last_step_may_need_two_earlier_results():
    found = [r for r in RECORDS if "together" in r.question]
    assert found
    for record in found:
        *_, before, own, both = (int(n) for n in results(record))
        assert both == before + own


def test_rationales_of_one_question_differ_and_lead_to_its_answer():
    for record in RECORDS[:40]:
        several = arithmetic.rationales_per_question(record, 4)
        assert several[0] == record
        assert several[:2] == arithmetic.rationales_per_question(record, 2)
        assert [r.id for r in several[1:]] == [f"{record.id}#{n}" for n in (2, 3, 4)]
        assert len({r.rationale for r in several}) == 4
        for other in several:
            assert (other.question, other.answer) == (record.question, record.answer)
            assert results(other) == results(record)
            assert results(other)[-1] == record.answer
            assert len(other.hardness or ()) == len(other.steps)
            assert len(other.keypoints or ()) == 4 * len(results(other))


def test_the_wrong_answer_of_a_counterfactual_follows_from_its_rationale():
    found = [(r, arithmetic.counterfactual(r)) for r in RECORDS]
    made = [(record, other) for record, other in found if other is not None]
    assert len(made) > 0.95 * len(RECORDS)
    for record, other in made:
        assert other.question == record.question
        assert other.answer != record.answer
        assert results(other)[-1] == other.answer
        assert other == arithmetic.counterfactual(record)


def test_other_questions_are_refused():
    record = RECORDS[0].__class__("x", "What is 1 + 1?", ("2.",), "2")
    with pytest.raises(ValueError, match="not a question of the built-in task"):
        arithmetic.counterfactual(record)


def test_a_task_without_filler_has_few_explanations():
    [record] = arithmetic.generate("train", 1, task=Task(0.0, (1, 1)))
    assert 2 <= len(arithmetic.rationales_per_question(record, 40, 0.0)) <= 10


@pytest.mark.usefixtures("few_problems")
def test_the_built_in_data_set_has_as_many_rationales_as_are_asked_for(tmp_path):
    records, _ = sources.load_records(
        "arithmetic", "train", limit=5, cache_dir=str(tmp_path), rationales_per_question=3
    )
    assert len(records) == 15
    assert records[::3] == arithmetic.generate("train", 5)
    assert len({r.question for r in records[:3]}) == 1


@pytest.mark.usefixtures("few_problems")
def test_two_runs_may_prepare_the_same_files_at_once(tmp_path, monkeypatch):
    generate, others = arithmetic.generate, []

    def generate_late(*arguments, **options):
        if not others:
            others.append("started")
            others.append(sources.load_records("arithmetic", "train", 5, cache_dir=str(tmp_path)))
        return generate(*arguments, **options)

    monkeypatch.setattr(arithmetic, "generate", generate_late)
    mine, _ = sources.load_records("arithmetic", "train", 5, cache_dir=str(tmp_path))
    assert mine == others[1][0] == generate("train", 5)


@pytest.mark.usefixtures("few_problems")
def test_the_built_in_data_set_has_the_knobs_that_are_asked_for(tmp_path):
    task = Task(1.0, (5, 6))
    for asked in (task, None):
        knobs: Any = {} if asked is None else {"arithmetic": dataclasses.asdict(asked)}
        records, _ = sources.load_records(
            "arithmetic", "train", 5, cache_dir=str(tmp_path), **knobs
        )
        assert records == arithmetic.generate("train", 5, task=asked)
