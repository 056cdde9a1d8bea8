import dataclasses
import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest

from kpod_jax.data import arithmetic, builders, gsm8k, published, sources
from kpod_jax.utils.errors import UserError

GOOD = {"question": "2 + 3?", "rationale": "It is 2 + 3. So 5.", "answer": "5"}


def write_lines(path: pathlib.Path, rows, encoding="utf-8") -> pathlib.Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return path


def many(n, **changes):
    return [GOOD | {"question": f"{i} + 1?"} | changes for i in range(n)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def gsm8k_folder(shared_data, tmp_path):
    """The first lines of GSM8K's files."""
    for name, count in (("train", 30), ("test", 20)):
        with (shared_data / "gsm8k" / f"{name}.jsonl").open(encoding="utf-8") as file:
            (tmp_path / f"{name}.jsonl").write_text(
                "".join(next(file) for _ in range(count)), encoding="utf-8"
            )
    return tmp_path


# A user's own file.


def load_jsonl(path, split="train", **options):
    if path.is_dir():  # Nothing is held out of train for splits that exist.
        for name in ("validation", "test"):
            (path / f"{name}.jsonl").touch()
    return sources.load_records("jsonl", split, path=str(path), **options)


def test_jsonl_folder(tmp_path):
    write_lines(tmp_path / "train.jsonl", [GOOD, GOOD | {"id": 17, "answer": 5.5}])
    write_lines(tmp_path / "test.jsonl", [{"question": "q", "answer": "7"}])
    records, rejected = load_jsonl(tmp_path)
    assert rejected == []
    assert [record.id for record in records] == ["train-0", "17"]
    assert records[0].steps == ("It is 2 + 3. ", "So 5.")
    assert records[1].answer == "5.5"
    # What is only evaluated needs no rationale.
    assert load_jsonl(tmp_path, "test")[0][0].steps == ()
    with pytest.raises(UserError, match="validation split of jsonl has no records"):
        load_jsonl(tmp_path, "validation")


def test_jsonl_separator_and_limit(tmp_path):
    path = tmp_path / "train.jsonl"
    write_lines(path, many(5, rationale="Pay 3.5. So 5."))
    records, _ = load_jsonl(tmp_path, step_separator=".", limit=3)
    assert len(records) == 3
    assert records[0].steps == ("Pay 3.", "5. ", "So 5.")


def test_jsonl_one_file_is_divided_by_question(tmp_path):
    path = write_lines(tmp_path / "all.jsonl", many(60) + many(60))
    parts = {split: load_jsonl(path, split)[0] for split in ("train", "validation", "test")}
    questions = {split: {r.question for r in records} for split, records in parts.items()}
    assert sum(map(len, parts.values())) == 120
    assert sum(map(len, questions.values())) == 60  # A repeated question is in one split alone.
    assert len(questions["train"]) > 35
    assert min(map(len, questions.values())) > 0


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question": "q", "rationale": "r"', "not valid JSON"),
        ('"text"', r"not a JSON object \(got str\)"),
        ({"question": "q", "cot": "r", "answer": "1"}, "no 'rationale'.*'question', 'cot'"),
        (GOOD | {"rationale": " "}, "empty 'rationale'"),
        (GOOD | {"question": ""}, "empty 'question'"),
        (GOOD | {"answer": None}, "'answer' of type NoneType"),
        (GOOD | {"answer": ["5"]}, "'answer' of type list"),
        (GOOD | {"answer": True}, "'answer' of type bool"),
        (GOOD | {"id": "train-0"}, "id 'train-0' of .*train.jsonl:1"),
        ('{"question": "\\ud800", "rationale": "r", "answer": "1"}', "surrogate"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_jsonl_bad_line_is_rejected_with_its_place(tmp_path, line, reason):
    path = write_lines(tmp_path / "train.jsonl", [*many(9), line])
    records, rejected = load_jsonl(tmp_path, max_rejected_fraction=0.1)
    assert len(records) == 9
    assert len(rejected) == 1
    assert rejected[0].reason.startswith(f"{path}:10 ")
    with pytest.raises(UserError, match=rf"(?s)1 of 10 records.*train\.jsonl:10 .*{reason}"):
        load_jsonl(tmp_path, max_rejected_fraction=0.09)


def test_jsonl_of_windows(tmp_path):
    text = "\r\n".join(json.dumps(row) for row in [*many(2), {}][:2]) + "\r\n\r\n"
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    records, rejected = load_jsonl(tmp_path)
    assert len(records) == 2
    assert rejected == []


def test_jsonl_not_utf8(tmp_path):
    row = json.dumps(GOOD | {"question": "Café?"}, ensure_ascii=False)
    write_lines(tmp_path / "train.jsonl", [row], "latin-1")
    with pytest.raises(UserError, match=r"train\.jsonl:1 is not UTF-8"):
        load_jsonl(tmp_path)
    write_lines(tmp_path / "train.jsonl", [row], "utf-16")  # With a byte order mark.
    assert load_jsonl(tmp_path)[0][0].question == "Café?"


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_jsonl_empty_file(tmp_path, content):
    (tmp_path / "train.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="no records"):
        load_jsonl(tmp_path)


@pytest.mark.parametrize(
    ("name", "split", "options", "expected"),
    [
        (
            "gsm9k",
            "train",
            {},
            "arithmetic, gsm8k, asdiv, svamp, commonsense_qa, jsonl, json, csv, ",
        ),
        ("jsonl", "dev", {"path": "x"}, "train, validation, test"),
        ("asdiv", "validation", {"splits": "official"}, "no official splits; .*data.splits=paper"),
        (
            "commonsense_qa",
            "train",
            {},
            "CommonsenseQA has no rationales .*--config.data.rationales",
        ),
        ("jsonl", "train", {}, "data.path"),
        ("arithmetic", "train", {"limit": -1}, "-1"),
    ],
)
def test_what_cannot_be_loaded(name, split, options, expected):
    with pytest.raises(UserError, match=expected):
        sources.load_records(name, split, **options)


# The built-in task.


@pytest.mark.usefixtures("few_problems")
def test_arithmetic_comes_back_as_it_was_made(cache):
    records, rejected = sources.load_records("arithmetic", "validation", cache_dir=cache, limit=12)
    assert rejected == []
    assert records == arithmetic.generate("validation", 12)
    assert records[0].keypoints and records[0].hardness


# GSM8K.


def load_gsm8k(folder, cache, split="train", **options):
    return sources.load_records("gsm8k", split, path=str(folder), cache_dir=cache, **options)


def test_gsm8k_own_solutions(gsm8k_folder, cache):
    records, rejected = load_gsm8k(gsm8k_folder, cache)
    assert rejected == []
    assert [record.id for record in records] == [f"gsm8k-train-{i}" for i in range(30)]
    assert records[0].steps == (
        "Natalia sold 48/2 = 24 clips in May.\n",
        "Natalia sold 48+24 = 72 clips altogether in April and May.",
    )
    assert records[0].answer == "72"
    assert not any("<<" in r.rationale or "####" in r.rationale for r in records)


def test_gsm8k_splits_are_the_papers(gsm8k_folder, cache, shared_data):
    ids = json.loads((shared_data / "splits" / "gsm8k.json").read_text())
    for split in ("validation", "test"):
        lines = [i for i in range(1319) if gsm8k.split_of("paper", "test", f"t-{i}") == split]
        assert lines == sorted(ids[split])
        records, _ = load_gsm8k(gsm8k_folder, cache, split)
        expected = [f"gsm8k-test-{i}" for i in ids[split] if i < 20]
        assert [record.id for record in records] == expected
    assert gsm8k.split_of("paper", "test", "gsm8k-test-1319") is None
    assert gsm8k.split_of("paper", "train", "gsm8k-train-5") == "train"
    official, _ = load_gsm8k(gsm8k_folder, cache, "test", splits="official")
    assert [record.id for record in official] == [f"gsm8k-test-{i}" for i in range(20)]


def test_gsm8k_official_train_split_gives_a_tenth_for_validation(gsm8k_folder, cache):
    train, validation = (
        load_gsm8k(gsm8k_folder, cache, split, splits="official")[0]
        for split in ("train", "validation")
    )
    assert len(train) + len(validation) == 30
    assert {published.tenth_of(record.question) for record in validation} == {8}
    assert 8 not in {published.tenth_of(record.question) for record in train}


def test_gsm8k_changed_folder_is_read_anew(gsm8k_folder, cache):
    load_gsm8k(gsm8k_folder, cache)
    lines = (gsm8k_folder / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (gsm8k_folder / "train.jsonl").write_text("".join(lines[:7]), encoding="utf-8")
    assert len(load_gsm8k(gsm8k_folder, cache)[0]) == 7


def test_gsm8k_teacher(gsm8k_folder, cache, shared_data):
    rows = {}
    with (shared_data / "gsm8k" / "rationales.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            if row["id"] >= 30:
                break
            rows[row["id"]] = row
    teacher = write_lines(gsm8k_folder / "teacher.jsonl", rows.values())
    records, rejected = load_gsm8k(gsm8k_folder, cache, rationales=str(teacher))
    assert {r.id: r.rationale for r in records} == {
        f"gsm8k-train-{i}": row["rationale"] for i, row in rows.items()
    }
    # Questions that the teacher failed on are told, but are not broken.
    assert [bad.id for bad in rejected] == [f"gsm8k-train-{i}" for i in range(30) if i not in rows]

    # The other splits keep their own solutions.
    assert load_gsm8k(gsm8k_folder, cache, "test", rationales=str(teacher)) == load_gsm8k(
        gsm8k_folder, cache, "test"
    )


def test_gsm8k_broken_lines_are_told_again_from_the_cache(gsm8k_folder, cache):
    path = gsm8k_folder / "train.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(
            '{"question": "q", "answer": "no mark"}\n{"question": "q", "answer": "####"}\n{\n'
        )
    for _ in range(2):
        records, rejected = load_gsm8k(gsm8k_folder, cache, max_rejected_fraction=0.1)
        assert len(records) == 30
        assert [bad.id for bad in rejected] == [f"gsm8k-train-{i}" for i in (30, 31, 32)]
        for bad, line, reason in zip(
            rejected, (31, 32, 33), ("#### NUMBER", "without a number", "JSON"), strict=True
        ):
            assert f"{path}:{line} " in bad.reason
            assert reason in bad.reason
    with pytest.raises(UserError, match=r"(?s)3 of 33.*train\.jsonl:31"):
        load_gsm8k(gsm8k_folder, cache)


def test_gsm8k_missing_or_foreign_files(tmp_path, cache):
    with pytest.raises(UserError, match=r"No such file: .*train\.jsonl.*original"):
        load_gsm8k(tmp_path, cache)
    for name in ("train", "test"):
        write_lines(tmp_path / f"{name}.jsonl", [{"prompt": "q"}])
    with pytest.raises(UserError, match=r"(?s)train\.jsonl:1 has no 'question'.*'prompt'"):
        load_gsm8k(tmp_path, cache)


def test_gsm8k_without_a_network(monkeypatch, cache):
    there = {f"{name}.jsonl": published.File(f"http://localhost:9/{name}.jsonl") for name in "ab"}
    here = dataclasses.replace(gsm8k.DATA_SET, files={"paper": there})
    monkeypatch.setattr(builders.KpodGsm8k, "DATA_SET", here)
    with pytest.raises(UserError, match=r"localhost:9[^§]*--config\.data\.path"):
        sources.load_records("gsm8k", "train", cache_dir=cache)


def test_a_full_disk_is_named_and_leaves_nothing_half_made(gsm8k_folder, tmp_path, monkeypatch):
    cache = tmp_path / "other"
    make = builders.tfds.core.GeneratorBasedBuilder._download_and_prepare

    def full(*args, **kwargs):
        make(*args, **kwargs)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(builders.tfds.core.GeneratorBasedBuilder, "_download_and_prepare", full)
        with pytest.raises(UserError, match=r"No space left on device.*--config\.data\.cache"):
            load_gsm8k(gsm8k_folder, str(cache))
    # Once there is space, the same call makes it whole.
    assert len(load_gsm8k(gsm8k_folder, str(cache))[0]) == 30


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("2*3 = $<<2*3=6>>6.\n#### 6", ("2*3 = $6.", "6")),
        ("It is 1,080.\n#### 1,080", ("It is 1,080.", "1080")),
        ("#### -3", ("", "-3")),
    ],
)
def test_gsm8k_answers(answer, expected):
    parsed = gsm8k.parse({"question": "q", "answer": answer})
    assert (parsed["rationale"], parsed["answer"]) == expected


def test_no_tensorflow_is_imported(tmp_path, cache):
    # A TensorFlow that cannot be imported without a trace.
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(
        "import pathlib; (pathlib.Path(__file__).parent / 'imported').touch()"
    )
    program = (
        "import sys\n"
        "from kpod_jax.data import batches, sources\n"
        f"records, _ = sources.load_records('arithmetic', 'test', cache_dir={cache!r}, limit=2)\n"
        "assert len(records) == 2\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    root = str(pathlib.Path(sources.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "tensorflow" / "imported").exists()
