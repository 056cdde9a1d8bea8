"""Other explanations of the built-in task's problems, and explanations of other numbers."""

import pytest

from kpod_jax.data import arithmetic, sources

RECORDS = arithmetic.generate("train", 150)
# Every right operation, as rationales write it.
RIGHT = {f"{e.before} {e.result}" for e in arithmetic.equations()}


def results(record):
    """The results of a rationale's operations in order, each of which must be a right one."""
    found = []
    for step in record.steps:
        words = step.replace(",", "").replace(".", "").split()
        spans = {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 3, i + 6)}
        right = [span for span in spans if span in RIGHT]
        if right:  # Filler has none. The longest is the whole operation.
            found.append(max(right, key=len).split()[-1])
    return found


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
            keys = [other.rationale[a:b] for a, b in other.keypoints or ()]
            assert keys
            assert all(key in "+-*/" or key.isalnum() for key in keys)


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


def test_the_built_in_data_set_has_as_many_rationales_as_are_asked_for(tmp_path):
    records, _ = sources.load_records(
        "arithmetic", "train", limit=5, cache_dir=str(tmp_path), per_question=3
    )
    assert len(records) == 15
    assert records[::3] == arithmetic.generate("train", 5)
    assert len({r.question for r in records[:3]}) == 1
