import csv
import json

import pytest

from kpod_jax.data import rationales, sources
from kpod_jax.data.records import Loaded, Record, Rejected
from kpod_jax.utils.errors import UserError

QUESTIONS = ["What is 1 + 1?", "What is 2 + 2?", "What is 3 + 3?"]


def loaded():
    records = [Record(f"set-train-{i}", q, (), str(2 * i + 2)) for i, q in enumerate(QUESTIONS)]
    return Loaded(records, [Rejected("broken", "x")], [Rejected("left-out", "y")], {"set-test-0"})


def good(i, **changes):
    row = {"id": i, "question": QUESTIONS[i], "rationale": f"So {2 * i + 2}.", "answer": 2 * i + 2}
    return row | changes


def apply(tmp_path, *rows, split="train", columns=None, kind="number"):
    path = tmp_path / "teacher.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    result = rationales.apply(
        loaded(),
        str(path),
        split,
        kind=kind,
        columns=columns or {},
        separator="",
        source_id=lambda id_: id_.removeprefix("set-train-"),
    )
    return result, path


def test_records_are_found_by_either_id_and_the_first_good_one_counts(tmp_path):
    result, path = apply(
        tmp_path,
        good(0, answer="5", rationale="So 5."),
        good(0, question=" what is\n1 + 1? ", rationale="First. So 2."),
        good(0, rationale="Second."),
        good(0, rationale="Third."),
        good(1, id="set-train-1", answer="$4.00"),
        good(1),
    )
    assert {r.id: r.steps for r in result.records} == {
        "set-train-0": ("First. ", "So 2."),
        "set-train-1": ("So 4.",),
    }
    assert result.broken == loaded().broken
    assert [(bad.id, bad.reason) for bad in result.skipped[1:]] == [
        (f"{path}:1", f"{path}:1 has the answer '5'; the data set's answer is '2'"),
        (
            str(path),
            f"{path} has 3 surplus rationales for 2 records (only the first is used): set-train-0, "
            "set-train-1",
        ),
        ("set-train-2", f"{path} has no usable rationale for it"),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (good(0, id=9, question="Why?"), "has the id '9', which no record has"),
        (good(0, id=None, question="Why?"), "has the question 'Why.', which no record has"),
        (good(0, id=9, question=""), "has the id '9', which no record has"),
        (good(0, id=1), "has the id of set-train-1, but another question"),
        (good(0, rationale=" "), "has an empty 'rationale'"),
        (good(0, answer=""), "has an empty 'answer'"),
        ({"cot": "x"}, "has no 'question'; its columns are 'cot' .set --config"),
        ({"id": 0, "cot": "x"}, "has no 'rationale'; its columns are 'id', 'cot' .set --config"),
        ("{", "is not valid JSON"),
        ('{"id": "\\ud800"}', "lone surrogate"),
    ],
)
def test_bad_rows_are_broken_by_file_and_line_and_nothing_else_is_lost(tmp_path, row, reason):
    result, path = apply(tmp_path, good(1), row, good(2))
    assert [record.rationale for record in result.records] == ["So 4.", "So 6."]
    [bad] = result.broken[1:]
    assert bad.id == f"{path}:2"
    assert bad.reason.startswith(f"{path}:2 ")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(bad.reason)


def test_rationales_of_other_splits_are_counted_and_not_broken(tmp_path):
    others = [good(0, id=id_) for id_ in ("set-test-0", "broken", "left-out", "left-out")]
    result, path = apply(tmp_path, *others, good(0))
    assert len(result.records) == 1
    assert result.broken == loaded().broken
    assert result.skipped[1].reason == (
        f"{path} has 4 rationales for records that are not in the train split: set-test-0, broken, "
        "left-out"
    )


def test_validation_records_stay_without_one(tmp_path):
    result, _ = apply(tmp_path, good(1), "{", split="validation")
    assert [record.rationale for record in result.records] == ["", "So 4.", ""]
    assert (result.broken, result.skipped) == (loaded().broken, loaded().skipped)


def test_a_long_rationale_is_kept_whole(tmp_path):
    long = "Then 1 more. " * 160_000  # 2 MB.
    result, _ = apply(tmp_path, good(0, rationale=long + "So 2."))
    assert result.records[0].rationale == long + "So 2."


def test_a_csv_file_with_its_own_columns(tmp_path):
    path = tmp_path / "teacher.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "prompt", "cot", "final"])
        writer.writerow([0, QUESTIONS[0], 'He says "2".\nSo 2.', "2"])
    columns = {"id": "number", "question": "prompt", "rationale": "cot", "answer": "final"}
    result = rationales.apply(
        Loaded([Record("0", QUESTIONS[0], (), "2")]),
        str(path),
        "train",
        kind="number",
        columns=columns,
        separator="",
    )
    assert result.records[0].rationale == 'He says "2".\nSo 2.'


def test_a_file_that_is_not_there_is_named(tmp_path):
    for source in (str(tmp_path / "none"), "./none.parquet", "none.jsonl", "none.csv"):
        with pytest.raises(UserError, match=r"Cannot read .*none"):
            rationales.apply(
                loaded(), source, "train", kind="number", columns={}, separator="", source_id=str
            )


@pytest.mark.usefixtures("few_problems")
def test_a_teacher_for_the_built_in_task_and_for_ones_own(tmp_path):
    [record], _ = sources.load_records("arithmetic", "train", cache_dir=str(tmp_path), limit=1)
    row = {"id": record.id, "question": record.question, "answer": record.answer}
    teacher = tmp_path / "teacher.jsonl"
    teacher.write_text(json.dumps(row | {"rationale": "By heart."}))
    [taught], _ = sources.load_records(
        "arithmetic", "train", cache_dir=str(tmp_path), limit=1, rationales=str(teacher)
    )
    assert (taught.steps, taught.keypoints, taught.hardness) == (("By heart.",), None, None)

    folder = tmp_path / "mine"
    folder.mkdir()
    mine = {"q": record.question, "answer": record.answer, "id": record.id}
    (folder / "train.jsonl").write_text(json.dumps(mine))
    [taught], rejected = sources.load_records(
        "jsonl",
        "train",
        path=str(folder),
        columns={"question": "q"},
        rationales=str(teacher),
    )
    assert (taught.steps, rejected) == (("By heart.",), [])


def test_several_rationales_of_a_question_are_several_records(tmp_path):
    rows = [good(0, rationale=f"Way {n}. So 2.") for n in (1, 2, 2, 3)]
    path = tmp_path / "teacher.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, good(1)]))
    folder = tmp_path / "mine"
    folder.mkdir()
    lines = [{"id": f"{i}", "question": q, "answer": 2 * i + 2} for i, q in enumerate(QUESTIONS)]
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("validation", "test"):  # So that nothing is held out of train.
        (folder / f"{name}.jsonl").touch()

    def loaded_with(per_question, limit=0):
        records, rejected = sources.load_records(
            "jsonl",
            "train",
            path=str(folder),
            rationales=str(path),
            rationales_per_question=per_question,
            limit=limit,
        )
        return [(r.id, r.rationale) for r in records], [bad.reason for bad in rejected]

    first, second, third = (f"Way {n}. So 2." for n in (1, 2, 3))
    assert loaded_with(2)[0] == [("0", first), ("0#2", second), ("1", "So 4.")]
    assert loaded_with(0)[0] == [("0", first), ("0#2", second), ("0#3", third), ("1", "So 4.")]
    # A limit counts questions.
    assert loaded_with(0, limit=1)[0] == [("0", first), ("0#2", second), ("0#3", third)]
    assert any("2 surplus rationales" in r and "first 2 are used" in r for r in loaded_with(2)[1])
    assert any("1 surplus rationales" in r and "repeat" in r for r in loaded_with(0)[1])
