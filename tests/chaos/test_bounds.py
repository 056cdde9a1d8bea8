"""Data and responses without end: refused by name, in little time and memory."""

import gzip
import json
import resource
import time

import numpy as np
import pytest

from kpod_jax.config import defaults
from kpod_jax.data import json_files, prepare, records, tables, tokens
from kpod_jax.data.record_store import RecordStore
from kpod_jax.data.records import Record
from kpod_jax.data.sources import load_records
from kpod_jax.data.text_files import MAX_RECORD, MAX_TEXT
from kpod_jax.data.tokenizers import load_tokenizer
from kpod_jax.utils.errors import UserError

GOOD = {"question": "Add 1 and 1.", "rationale": "One and one make two.", "answer": "2"}
DEEP = "[" * 100_000 + "]" * 100_000
MB = 1 << 20


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("kpod_jax/assets/tiny_t5")


@pytest.fixture(autouse=True)
def little():
    """No case takes long, or much memory beyond that of the others."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000  # kB
    assert time.monotonic() - start < 30


class Student:
    """What `prepare_data` needs of a student."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def tokenize(self, records):
        return tokens.tokenize(
            records,
            self.tokenizer,
            prompt="Q: {question} A:",
            answer_template="So it is {answer}.",
            max_question_tokens=256,
            max_target_tokens=384,
        )


def load(folder, name="jsonl"):
    changes = {"path": str(folder), "max_rejected_fraction": 1.0}
    return load_records(name, "train", **changes)


def write(folder, *lines, name="train.jsonl", opened=open):
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    with opened(folder / name, "wt", encoding="utf-8") as file:
        file.writelines(f"{text}\n" for text in texts)
    for split in ("validation", "test"):
        (folder / f"{split}.jsonl").touch()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (GOOD | {"rationale": "x" * (50 * MB)}, "more than 16,777,216 characters"),
        (GOOD | {"other": "x" * (50 * MB)}, "more than 16,777,216 characters"),
        ("x" * (50 * MB), "more than 16,777,216 characters"),
        ("[" * (50 * MB), "more than 16,777,216 characters"),
        (GOOD | {"question": "One more. " * MB + "."}, "'question' of 10,485,761 characters"),
        (GOOD | {"rationale": "One more. " * MB + "."}, "'rationale' of 10,485,761 characters"),
        (GOOD | {"answer": "1" * (5 * MB)}, "'answer' of 5,242,880 characters"),
        (GOOD | {"id": "i" * (5 * MB)}, "'id' of 5,242,880 characters"),
        (f'{{"question": {DEEP}}}', "nested too deeply"),
        (GOOD | {"question": "a" + " " * 60_000 + "b"}, "spaces in a row in 'question'"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        (DEEP, "nested too deeply"),
        ('{"question": ' + "1" * 1_000_000 + "}", "not valid JSON"),
        ('{"question": "a?", "answer": "1", "answer": "2"}', "the key 'answer' is repeated"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_an_endless_line_is_rejected_and_the_others_are_read(tmp_path, line, reason, compressed):
    name, opened = ("train.jsonl.gz", gzip.open) if compressed else ("train.jsonl", open)
    write(tmp_path, GOOD, line, GOOD | {"id": "last"}, name=name, opened=opened)
    found, rejected = load(tmp_path)
    assert [record.id for record in found] == ["train-0", "last"]
    assert len(rejected) == 1 and f"{name}:2" in rejected[0].reason
    assert reason in rejected[0].reason and len(rejected[0].reason) < 400


@pytest.mark.parametrize("before", [0, 3, 20])
@pytest.mark.parametrize("end", [b"\n", b" "])
def test_an_error_in_a_long_array_is_where_it_is_said(tmp_path, before, end):
    """However many megabytes are before and after it, in one line or several."""
    one = json.dumps({"question": "x" * 999}).encode()
    good = [one] * (before * 1024)
    text = b"[" + b"".join(part + b"," + end for part in good) + b'{"question": x},' + end
    offset = text.index(b"x}")
    path = tmp_path / "train.json"
    path.write_bytes(text + b",".join([one] * 20_480) + b"]")
    line = text[:offset].count(b"\n") + 1
    column = offset - text.rfind(b"\n", 0, offset)
    said = rf"train\.json:{line} is not valid JSON: Expecting value \(column {column}, in record "
    with pytest.raises(UserError, match=said + rf"{before * 1024 + 1} of"):
        list(json_files.read(path))


@pytest.mark.parametrize("size", [MAX_TEXT - 10, MAX_TEXT])
def test_the_longest_text_is_read_whole(tmp_path, size):
    write(tmp_path, GOOD | {"rationale": "a" * size})
    (record,), _ = load(tmp_path)
    assert len(record.rationale) == size


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('question,rationale,answer\na?,So 1.,1\nb?,"{x}",1\nc?,So 1.,1\n', 3),
        ("question,rationale,answer\na?,So 1.,1\nb?,{x},1\nc?,So 1.,1\n", 3),
        ('question,rationale,answer\na?,So 1.,1\n"{x}', 2),
        ("question,rationale,{x}\na?,So 1.,1\n", 1),
    ],
)
def test_an_endless_field_of_csv(tmp_path, text, count):
    path = tmp_path / "a.csv"
    path.write_text(text.replace("{x}", "x" * (50 * MB)))
    rows = list(tables.read(path))
    assert len(rows) == count
    assert any("field larger than field limit" in row.problem for row in rows)
    assert [r.values["question"] for r in rows if r.values] == ["a?", "c?"][: count - 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"question": "a?"}, {"question": "' + "x" * (50 * MB) + '"}]', "more than 16,777,216"),
        ('[{"question": "a?"}, ' + "[" * 100_000, "nested too deeply"),
        ('[{"question": "a?"}, {"question": ' + DEEP + "}]", "nested too deeply"),
        ('[{"question": "a?"}' + " " * (50 * MB), "not valid JSON"),
        ('[{"question": "a?"}] x' + "x" * (50 * MB), "text after the end of the JSON array: x"),
        ('[{"question": "a?"}, {"question": "b', r"record 2 of the file"),
        ('[{"answer": "1"}, {"answer": "1", "answer": "2"}]', "the key 'answer' is repeated"),
    ],
)
def test_an_endless_array(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        list(tables.read(path))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_large_array_is_read_element_by_element(tmp_path, indent, wrapped):
    values = [{"question": f"{i}?", "filler": "é\n" * (i % 50)} for i in range(60_000)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": values} if wrapped else values, indent=indent))
    assert [row.values for row in tables.read(path)] == values
    rows = list(tables.read(path))
    assert [row.index for row in rows] == list(range(60_000))
    if indent and not wrapped:
        line = 2 + 4 * 59_999
        assert rows[-1].place == f"{path}:{line}"


SHORT = Record("short", "What is 1 + 1?", ("1 + 1 = 2.",), "2")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": "What is 1? " * 5_000_000}, "question has 55,000,000 characters"),
        ({"steps": ("1 + 1 = 2. " * 5_000_000,)}, "rationale and answer have 55,000,001"),
        ({"steps": ("Then 1. ",) * 20_000}, "rationale and answer have 160,001"),
        ({"answer": "2" * 50_000_000}, "rationale and answer have 50,000,010"),
        ({"question": "漢" * 50_000_000}, "question has 50,000,000"),
        ({"question": "\u200b" * 50_000_000 + "?"}, "question has 50,000,001"),
        ({"question": "a" + " " * 50_000_000 + "b"}, "question has 50,000,002"),
        ({"question": " " * 50_000_000}, "question is empty"),
    ],
)
def test_a_text_that_cannot_fit_is_rejected_before_it_is_tokenized(tokenizer, change, reason):
    long = Record(**{**vars(SHORT), "id": "long", **change})
    data = prepare.prepare_data({"train": [SHORT, long]}, Student(tokenizer))
    assert [record.id for record in data.records("train")] == ["short"]
    assert [row["id"] for row in data.rejected] == ["long"]
    assert reason in data.rejected[0]["reason"]


def test_a_text_that_shrinks_to_a_few_tokens_is_not_too_long(shared_data):
    tokenizer = load_tokenizer(str(shared_data / "tokenizers/t5_spiece.model"))
    spaces = ("a" + " " * 1_900) * 30
    questions = ["漢" * 60_000, "\u200b" * 60_000, spaces, "a" + " " * 2_001, "a" + "\n" * 60_000]
    kept, rejected = tokens.tokenize(
        [Record(str(i), f"{q} x", ("So 1.",), "1") for i, q in enumerate(questions)],
        tokenizer,
        prompt="{question}",
        answer_template="{answer}",
        max_question_tokens=64,
        max_target_tokens=64,
    )
    assert [record.id for record in kept.records] == ["0", "1", "2"]
    assert [bad.id for bad in rejected] == ["3", "4"]
    assert "more than 2,000 spaces in a row" in rejected[0].reason


def test_chunks_make_no_difference(tokenizer, tmp_path):
    steps = [("So it is 1. ", "And 2."), ("One.",), ("A " * 400,), ("Then 3 more. ", "...", " 4.")]
    many = [Record(f"{i}", f"What is {i}?", steps[i % 4], str(i)) for i in range(5_000)]
    tokenize = Student(tokenizer).tokenize
    whole, rejected = tokenize(many)
    parts = [tokenize(many[i : i + 500]) for i in range(0, 5_000, 500)]
    assert rejected == [bad for _, part in parts for bad in part] and len(rejected) == 1_250
    assert whole.records == [record for part, _ in parts for record in part.records]
    for name in ("questions", "targets", "steps", "answers", "rationale_char_spans"):
        found = getattr(whole, name)
        expected = [array.tolist() for part, _ in parts for array in getattr(part, name)]
        assert [array.tolist() for array in found] == expected
        assert found.values.dtype == np.int32
    prepared = prepare.prepare_data({"train": many, "test": many[:3]}, Student(tokenizer))
    prepared.save(tmp_path)
    again = prepare.Data.load(tmp_path)
    assert again.records("train") == whole.records and again.records("test") == many[:3]
    assert again.train.targets.values.tolist() == whole.targets.values.tolist()
    assert "2 questions of train are also in test: 0 = 0, 1 = 1" in prepared.notes[-1]


def test_records_stay_on_disk(tmp_path):
    many = [Record(f"{i}", "漢\u2028\ud83d? ", ("a\n", "b"), str(i), ((0, 1),)) for i in range(700)]
    store = RecordStore(iter(many))
    store.extend(many[:2])
    assert len(store) == 702 and store[-1] == many[1] and store[3:5] == many[3:5]
    assert store == [*many, *many[:2]] and store != many
    path = tmp_path / "a.jsonl"
    records.write_records(path, (r for r in many[:0]))
    assert len(RecordStore.open(path)) == 0
    plain = [Record(f"{i}", "漢\u2028?", ("a\n", "b"), str(i)) for i in range(700)]
    records.write_records(path, plain)
    path.write_bytes(b"\n" + path.read_bytes().replace(b"\n", b"\r\n \n"))
    assert RecordStore.open(path) == plain
    path.write_text("\n".join(json.dumps(plain[i].to_json()) for i in (0, 1, 0)))
    with pytest.raises(UserError, match=r"a\.jsonl:3 repeats the id '0' of line 1"):
        RecordStore.open(path)


def test_a_full_disk_for_temporary_data_is_one_line(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/dev/full/no")
    monkeypatch.setattr("tempfile.tempdir", None)
    store = RecordStore()
    store._file = open("/dev/full", "w+b", buffering=0)  # noqa: SIM115
    with pytest.raises(UserError, match=r"temporary file in .*No space left.*TMPDIR"):
        store.extend([SHORT])


def test_defaults_bound_a_response():
    teacher = defaults.get_config().teacher
    assert teacher.total_timeout == 1800 and MAX_RECORD > MAX_TEXT
