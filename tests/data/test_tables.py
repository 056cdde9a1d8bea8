import csv
import json
import sys

import pytest

from kpod_jax.cli import checks
from kpod_jax.config import defaults
from kpod_jax.data import custom, published, sources, tables
from kpod_jax.utils.errors import UserError

HEADER = "question,rationale,answer\n"


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def load(path, split="train", name="csv", **options):
    if name != "huggingface" and path.is_dir():  # Nothing is held out for splits that exist.
        for other in ("validation", "test"):
            (path / f"{other}.{name}").touch()
    return sources.load_records(name, split, path=str(path), **options)


def test_csv_folder(tmp_path):
    write(
        tmp_path / "train.csv",
        "\ufeffquestion, rationale ,answer,id\r\n"
        '"How many, say ""pens""?","Line one.\nSo 2.",2,a\r\n'
        "\r\n"
        "Why?,So 3.,3,\r\n",
    )
    records, rejected = load(tmp_path)
    assert rejected == []
    assert [(r.id, r.question, r.steps, r.answer) for r in records] == [
        ("a", 'How many, say "pens"?', ("Line one.\n", "So 2."), "2"),
        ("train-1", "Why?", ("So 3.",), "3"),
    ]
    with pytest.raises(UserError, match="validation split of csv has no records"):
        load(tmp_path, "validation")
    with pytest.raises(UserError, match=r"none\.csv does not exist.*columns such as question"):
        load(tmp_path / "none.csv", "validation")


def test_csv_columns_of_any_names(tmp_path):
    write(tmp_path / "train.csv", "prompt,cot,final\nWhy?,So 3.,3\n")
    columns = {"question": "prompt", "rationale": "cot", "answer": "final"}
    assert load(tmp_path, columns=columns)[0][0].steps == ("So 3.",)
    del columns["question"]
    assert load(tmp_path, columns=columns)[0][0].question == "Why?"
    with pytest.raises(
        UserError,
        match=r"train\.csv:2 has no 'ask'; its columns are 'prompt', 'cot', 'final' "
        r"\(set --config\.data\.columns\.question to the right one\)",
    ):
        load(tmp_path, columns={"question": "ask"})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (",,", "has an empty 'question'"),
        ("Why?,So 3.", "has 2 fields; the first line names 3"),
        ("Why?,So 3.,3,4", "has 4 fields; the first line names 3"),
        ('"Why"?,So 3.,3', "is not valid CSV: ',' expected after '\"'"),
        ("Caf\udce9?,So 3.,3", "is not UTF-8 text; save the file as UTF-8"),
        ("Why?, ,3", "has an empty 'rationale'"),
        ("Why?,So 3.,", "has an empty 'answer'"),
    ],
)
def test_a_bad_csv_row_is_rejected_with_its_line_and_the_others_stay(tmp_path, line, reason):
    path = tmp_path / "train.csv"
    text = HEADER + f"A?,So 1.,1\n{line}\nB?,So 2.,2\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    records, rejected = load(tmp_path, max_rejected_fraction=0.5)
    assert [record.question for record in records] == ["A?", "B?"]
    assert [bad.reason for bad in rejected] == [f"{path}:3 {reason}"]
    with pytest.raises(UserError, match="1 of 3 records"):
        load(tmp_path)


def test_a_quotation_mark_that_is_not_closed_is_named_where_it_opens(tmp_path):
    path = write(tmp_path / "train.csv", HEADER + 'A?,So 1.,1\n"B?,So 2.,2\nC?,So 3.,3\n')
    _, rejected = load(tmp_path, max_rejected_fraction=0.5)
    [bad] = rejected
    assert bad.reason.startswith(f"{path}:3 is not valid CSV: ")
    assert "unclosed quotation mark" in bad.reason


@pytest.mark.parametrize("content", ["", "\n\n", HEADER, "\ufeff"])
def test_an_empty_csv_file(tmp_path, content):
    write(tmp_path / "train.csv", content)
    with pytest.raises(UserError, match="no records"):
        load(tmp_path)


def test_a_csv_file_of_other_encodings(tmp_path):
    write(tmp_path / "train.csv", HEADER + "Café?,So 1.,1\n", "utf-16")
    assert load(tmp_path)[0][0].question == "Café?"
    write(tmp_path / "train.csv", "é" + HEADER, "latin-1")
    with pytest.raises(UserError, match=r"train\.csv:1 is not UTF-8 text"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_a_rationale_of_megabytes_is_kept_whole(tmp_path, name):
    limit = csv.field_size_limit()
    long = "Then 1 more. " * 160_000 + "So 2."
    if name == "csv":
        write(tmp_path / "train.csv", HEADER + f'A?,"{long}",2\n')
    else:
        row = {"question": "A?", "rationale": long, "answer": "2"}
        write(tmp_path / "train.jsonl", json.dumps(row))
    [record], _ = load(tmp_path, name=name)
    assert record.rationale == long
    assert csv.field_size_limit() == limit


def test_one_csv_file_is_divided_by_question(tmp_path):
    lines = "".join(f"{i}?,So 1.,1\n" for i in range(60))
    path = write(tmp_path / "all.csv", HEADER + lines)
    parts = {split: load(path, split)[0] for split in published.SPLITS}
    assert sum(map(len, parts.values())) == 60
    assert min(map(len, parts.values())) > 0
    assert len({record.id for part in parts.values() for record in part}) == 60


# Hugging Face data sets.


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return pytest.importorskip("datasets")


def rows(count, **changes):
    return [
        {"question": f"{i}?", "rationale": "So 1.", "answer": "1", "id": f"n{i}"} | changes
        for i in range(count)
    ]


def test_hugging_face_directory_with_splits(tmp_path, hub):
    parts = {
        "train": hub.Dataset.from_list([*rows(2), {"question": "x?"}]),
        "test": hub.Dataset.from_list(rows(1)),
    }
    parts["validation"] = parts["test"]
    hub.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    records, rejected = load(tmp_path / "saved", name="huggingface", max_rejected_fraction=0.5)
    assert [(r.id, r.steps) for r in records] == [("n0", ("So 1.",)), ("n1", ("So 1.",))]
    assert rejected[0].reason == (
        f"{tmp_path / 'saved'} (train) row 2 has 'answer' of type NoneType; expected text"
    )
    assert len(load(tmp_path / "saved", "test", "huggingface")[0]) == 1


def test_hugging_face_directory_of_one_split_is_divided(tmp_path, hub):
    hub.Dataset.from_list(rows(60)).save_to_disk(str(tmp_path / "saved"))
    parts = [load(tmp_path / "saved", split, "huggingface")[0] for split in published.SPLITS]
    assert sum(map(len, parts)) == 60 and min(map(len, parts)) > 0


def test_hugging_face_directory_of_parquet_files_and_a_teacher_there(tmp_path, hub):
    folder = tmp_path / "files"
    folder.mkdir()
    hub.Dataset.from_list(rows(3)).to_parquet(str(folder / "train.parquet"))
    assert len(tables.hub_rows(str(folder), "train")[0].__next__().values or ()) == 4
    mine = tmp_path / "train.jsonl"
    mine.write_text("".join(json.dumps(row | {"rationale": ""}) + "\n" for row in rows(3)))
    records, _ = load(tmp_path, name="jsonl", rationales=str(folder))
    assert [record.rationale for record in records] == ["So 1."] * 3
    # The directory itself is read without the package.
    found = [load(folder, split, "huggingface")[0] for split in published.SPLITS]
    assert sum(map(len, found)) == 3


def test_what_is_no_hugging_face_data_set_is_named(tmp_path, hub):
    with pytest.raises(UserError, match=r"Cannot load the Hugging Face data set .*empty"):
        (tmp_path / "empty").mkdir()
        load(tmp_path / "empty", name="huggingface")


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install 'datasets"):
        load("openai/gsm8k:main", name="huggingface")


# The configuration.


def test_every_data_set_and_column_that_is_checked_exists():
    config = defaults.get_config()
    assert checks.CHOICES["data.name"] == sources.NAMES
    assert config.data.columns.to_dict() == custom.COLUMNS


def test_files_that_are_read_are_known(tmp_path):
    for name in ("train.csv", "test.csv", "other.csv", "ASDiv.xml", "train.jsonl"):
        (tmp_path / name).touch()

    def names(name, path=tmp_path):
        return [file.name for file in sources.input_files(name, str(path), "paper")]

    assert names("csv") == ["train.csv", "test.csv"]
    assert names("csv", tmp_path / "other.csv") == ["other.csv"]
    assert names("asdiv") == ["ASDiv.xml"]
    assert names("gsm8k") == ["train.jsonl"]
    assert names("arithmetic") == names("huggingface") == names("asdiv", "") == []
