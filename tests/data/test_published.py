import dataclasses
import http.server
import json
import threading

import pytest

from kpod_jax.data import (
    answers,
    asdiv,
    builders,
    commonsense_qa,
    gsm8k,
    published,
    sources,
    svamp,
)
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from tests.conftest import TEMPLATES

PUBLISHED = [gsm8k, asdiv, svamp, commonsense_qa]
PROBLEM = """<Problem ID="{id}" Grade="1" Source="http://x">
<Body>Tom has 3 pens.</Body><Question> He buys 4. How many has he? </Question>
<Solution-Type>Addition</Solution-Type><Answer>{answer}</Answer><Formula>{formula}</Formula>
</Problem>"""
SVAMP = {
    "ID": "chal-1",
    "Body": "Tom had 9 pens, of which he lost 2",
    "Question": "How many are left?",
    "Equation": "( 9.0 - 2.0 )",
    "Answer": 7.0,
    "Type": "Subtraction",
}
CHOICES = [{"label": a, "text": b} for a, b in zip("ABC", ("bank", "park", "sea"), strict=True)]
CSQA = {
    "answerKey": "B",
    "id": "abc",
    "question": {"question_concept": "x", "stem": "Where is grass?", "choices": CHOICES},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def write_asdiv(folder, *problems):
    text = "\n".join(
        PROBLEM.format(**({"id": "nluds-0004", "answer": "7 (pens)", "formula": "3+4=7"} | changes))
        for changes in problems
    )
    (folder / "ASDiv.xml").write_text(
        f"<Machine-Reading-Corpus-File><ProblemSet>{text}</ProblemSet>"
        "</Machine-Reading-Corpus-File>"
    )


def write_svamp(folder, *changes):
    (folder / "SVAMP.json").write_text(json.dumps([SVAMP | change for change in changes]))


def write_csqa(folder, *changes, name="train_rand_split.jsonl"):
    for file in ("train_rand_split.jsonl", "dev_rand_split.jsonl"):
        (folder / file).touch()
    lines = [json.dumps(CSQA | change) + "\n" for change in changes]
    (folder / name).write_text("".join(lines))


def load(name, folder, cache, split="train", max_rejected_fraction=1.0, **options):
    return sources.load_records(
        name,
        split,
        path=str(folder),
        cache_dir=cache,
        max_rejected_fraction=max_rejected_fraction,
        **options,
    )


# The paper's splits.


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("asdiv", (1462, 313, 314)),
        ("svamp", (700, 150, 150)),
        ("commonsense_qa", (8520, 1221, 1221)),
        ("gsm8k", (7473, 660, 659)),
    ],
)
def test_the_splits_are_the_papers(shared_data, name, sizes):
    ids = json.loads((shared_data / "splits" / f"{name}.json").read_text())
    assert tuple(map(len, ids.values())) == sizes
    data_set = sources.PUBLISHED[name]
    for split, members in ids.items():
        for id_ in members:
            stem = "x"
            if name == "gsm8k":
                stem = "train" if split == "train" else "test"
                id_ = data_set.id_of({}, stem, id_)
            assert data_set.split_of("paper", stem, id_) == split, id_


def test_what_the_paper_leaves_out_is_in_no_split():
    assert asdiv.split_of("paper", "ASDiv", "nluds-0030") is None
    codes = published.read_asset("asdiv")["splits"]
    assert len(codes) == 2305 and codes.count("-") == 216
    for id_ in ("nluds-0000", "nluds-2306", "nluds-x", ""):
        assert asdiv.split_of("paper", "ASDiv", id_) is None
    assert len(published.read_asset("svamp")["splits"]) == 1000
    for id_ in ("chal-0", "chal-1001", "chal--1", "x"):
        assert svamp.split_of("paper", "SVAMP", id_) is None


@pytest.mark.parametrize("split", ["train", "validation"])
def test_official_splits_of_commonsense_qa(shared_data, split):
    ids = json.loads((shared_data / "splits" / "commonsense_qa.json").read_text())
    # Without the paper's validation split train is the official one, and dev is the test split.
    assert {commonsense_qa.split_of("official", "x", id_) for id_ in ids[split]} == {"train"}
    assert {commonsense_qa.split_of("official", "x", id_) for id_ in ids["test"]} == {"test"}


def test_official_splits_of_svamp_are_a_mirrors_files(tmp_path, cache):
    rows = [SVAMP | {"ID": f"chal-{i}", "Question": f"How many of {i}?"} for i in range(1, 41)]
    (tmp_path / "train.json").write_text(json.dumps(rows[:30]))
    (tmp_path / "test.json").write_text("\n".join(map(json.dumps, rows[30:])))
    parts = {
        split: load("svamp", tmp_path, cache, split, splits="official")[0]
        for split in published.SPLITS
    }
    assert [r.id for r in parts["test"]] == [f"chal-{i}" for i in range(31, 41)]
    assert len(parts["train"]) + len(parts["validation"]) == 30
    assert {published.tenth_of(r.question) for r in parts["validation"]} == {8}


def test_asdiv_has_no_official_splits(tmp_path, cache):
    write_asdiv(tmp_path, {})
    with pytest.raises(UserError, match=r"ASDiv has no official splits; .*data\.splits=paper"):
        load("asdiv", tmp_path, cache, splits="official")


@pytest.mark.parametrize("module", PUBLISHED)
def test_notes_and_kinds(module):
    data_set = module.DATA_SET
    assert data_set.files.keys() == data_set.notes.keys()
    assert sources.answer_kind(data_set.name) == data_set.answer_kind
    assert sources.answer_kind(data_set.name, "yes_no") == "yes_no"
    if "official" in data_set.files:
        assert "a tenth of" in sources.note(data_set.name, "official")
    assert all(file.url.startswith("https://") for file in data_set.files["paper"].values())


# Records.


def test_asdiv_record(tmp_path, cache):
    write_asdiv(tmp_path, {})
    [record], rejected = load("asdiv", tmp_path, cache)
    assert rejected == []
    assert record.id == "nluds-0004"
    assert record.question == "Tom has 3 pens. He buys 4. How many has he?"
    assert (record.steps, record.answer) == (("3 + 4 = 7.",), "7")


@pytest.mark.parametrize(
    ("answer", "formula", "expected"),
    [
        ("1,200 (dollars)", "3*400=1200", "1200"),
        ("$2.50", "5/2=2.5", "2.5"),
        ("3/4 (of it)", "3/4=3/4", "3/4"),
        ("25%", "100/4=25", "25"),
    ],
)
def test_asdiv_answers(tmp_path, cache, answer, formula, expected):
    write_asdiv(tmp_path, {"answer": answer, "formula": formula})
    assert load("asdiv", tmp_path, cache)[0][0].answer == expected


def test_asdiv_bad_and_left_out_problems_are_told_apart(tmp_path, cache):
    write_asdiv(
        tmp_path,
        {},
        {"id": "nluds-0005", "answer": "3 (days); 4 (hours)"},  # Broken: the paper has it.
        {"id": "nluds-0030", "answer": "Tom"},  # In no split of the paper's.
        {"id": "nluds-0076"},
        {"id": "nluds-0006", "formula": "x+3=7"},  # No rationale can be made.
        {"id": "nluds-0007", "formula": "3+5=8"},
        {},
        {"id": ""},
    )
    records, rejected = load("asdiv", tmp_path, cache)
    assert [record.id for record in records] == ["nluds-0004"]
    reasons = {bad.id: bad.reason for bad in rejected}
    assert (
        "problem 1 has an 'Answer' that is not a single number: '3 (days); 4"
        in reasons["nluds-0005"]
    )
    assert "not a single number: 'Tom'" in reasons["nluds-0030"]
    assert "in none of the paper splits" in reasons["nluds-0076"]
    assert "not purely numeric: 'x+3=7'" in reasons["nluds-0006"]
    assert "'3+5=8', equal to 8; its answer is 7" in reasons["nluds-0007"]
    assert "problem 6 repeats the id 'nluds-0004' of" in reasons["nluds-0004"]
    assert "problem 7 has an empty 'ID'" in reasons["asdiv-ASDiv-7"]
    assert len(rejected) == 7
    with pytest.raises(UserError, match=r"3 of 8 records cannot be used"):
        load("asdiv", tmp_path, cache, max_rejected_fraction=0.1)


def test_svamp_record(tmp_path, cache):
    write_svamp(tmp_path, {}, {"ID": "chal-2", "Answer": None}, {"ID": "chal-3", "Answer": "many"})
    [record], rejected = load("svamp", tmp_path, cache)
    assert record.id == "chal-1"
    assert record.question == "Tom had 9 pens, of which he lost 2. How many are left?"
    assert (record.steps, record.answer) == (("9 - 2 = 7.",), "7")
    assert "record 1 has 'Answer' of type NoneType" in rejected[0].reason
    assert "record 2 has an 'Answer' that is not a number: 'many'" in rejected[1].reason


def test_commonsense_qa_record_in_both_layouts(tmp_path, cache):
    other = {
        "id": "def",
        "question": "Where is sand?",
        "choices": {"label": ["A", "B"], "text": ["bank", "sea"]},
    }
    write_csqa(tmp_path, {}, other)
    records, rejected = load("commonsense_qa", tmp_path, cache, need_rationales=False)
    assert rejected == []
    assert [(r.id, r.question, r.steps, r.answer) for r in records] == [
        ("abc", "Where is grass? (A) bank (B) park (C) sea", (), "B"),
        ("def", "Where is sand? (A) bank (B) sea", (), "B"),
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answerKey": ""}, "'answerKey' ''; expected one of A, B, C .the official test"),
        ({"answerKey": "D"}, "'answerKey' 'D'"),
        ({"question": {"stem": "x"}}, "no list of 'choices'"),
        ({"question": {"stem": "x", "choices": ["a"]}}, "no list of 'choices'"),
        ({"question": {"stem": "x", "choices": CHOICES[:1]}}, "choices A; expected A, B"),
        ({"question": {"stem": "x", "choices": CHOICES[::-1]}}, "choices C, B, A; expected"),
        ({"question": {"choices": CHOICES}}, "has no 'stem'"),
        ({"question": "x", "choices": {"label": ["A"], "text": []}}, "not lists of equal length"),
        ({"id": None}, "'id' of type NoneType"),
    ],
)
def test_commonsense_qa_bad_records(tmp_path, cache, change, reason):
    write_csqa(tmp_path, {}, {"id": "bad"} | change)
    records, rejected = load("commonsense_qa", tmp_path, cache, need_rationales=False)
    assert [record.id for record in records] == ["abc"]
    assert f"{tmp_path / 'train_rand_split.jsonl'}:2 " in rejected[0].reason
    with pytest.raises(UserError, match=rf"(?s)1 of 2.*{reason}"):
        load("commonsense_qa", tmp_path, cache, need_rationales=False, max_rejected_fraction=0.1)


def test_commonsense_qa_trains_on_a_teachers_rationales_alone(tmp_path, cache):
    write_csqa(tmp_path, {}, {"id": "other"})
    with pytest.raises(UserError, match=r"no rationales to train on.*--config\.data\.rationales"):
        load("commonsense_qa", tmp_path, cache)
    row = {
        "id": "abc",
        "question": "Where is grass? (A) bank (B) park (C) sea",
        "rationale": "Grass grows. A park is green.",
        "answer": "(B) park",
    }
    (tmp_path / "teacher.jsonl").write_text(json.dumps(row))
    [record], rejected = load(
        "commonsense_qa", tmp_path, cache, rationales=str(tmp_path / "teacher.jsonl")
    )
    assert record.steps == ("Grass grows. ", "A park is green.")
    assert [bad.id for bad in rejected] == ["other"]


# Downloads.


@pytest.fixture
def server(tmp_path):
    """A folder, and its address on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(folder), **kwargs)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


@pytest.mark.parametrize("right", [True, False])
def test_files_are_downloaded_and_those_that_are_known_checked(
    tmp_path, monkeypatch, server, right
):
    folder, address = server
    write_csqa(folder, {}, {"id": "other"})
    known = {
        name: published.File(
            f"{address}/{name}", files.digest(folder / name) if right else "0" * 64
        )
        for name in commonsense_qa.DATA_SET.files["paper"]
    }
    # Without its digest any file will do.
    known["dev_rand_split.jsonl"] = published.File(f"{address}/dev_rand_split.jsonl")
    there = dataclasses.replace(commonsense_qa.DATA_SET, files={"paper": known})
    monkeypatch.setattr(builders.KpodCommonsenseQa, "DATA_SET", there)

    def download():
        return sources.load_records(
            "commonsense_qa", "train", cache_dir=str(tmp_path / "cache"), need_rationales=False
        )

    if not right:
        with pytest.raises(UserError, match=r"train_rand_split\.jsonl, is not the expected file"):
            download()
        return
    assert [record.id for record in download()[0]] == ["abc", "other"]
    (folder / "train_rand_split.jsonl").unlink()
    assert len(download()[0]) == 2  # From the cache.


# Whole files that cannot be used.


@pytest.mark.parametrize(
    ("name", "file", "content", "said"),
    [
        ("asdiv", "ASDiv.xml", b"<a>\n<b></a>", r"ASDiv\.xml:2 is not valid XML: mismatched tag"),
        ("asdiv", "ASDiv.xml", b"", r"ASDiv\.xml:1 is not valid XML: no element found"),
        ("asdiv", "ASDiv.xml", b"<a>caf\xe9</a>", r"ASDiv\.xml:1 is not valid XML"),
        (
            "asdiv",
            "ASDiv.xml",
            b"<a/>",
            r"no usable ASDiv records in .*: the files hold no records",
        ),
        (
            "asdiv",
            "ASDiv.xml",
            b'<!DOCTYPE a [<!ENTITY b "x">]><a>&b;</a>',
            "declares a document type, 'a'",
        ),
        ("svamp", "SVAMP.json", b'[{"ID": 1},\n}]', r"SVAMP\.json is not valid JSON: .*line 2"),
        ("svamp", "SVAMP.json", b"caf\xe9", r"SVAMP\.json is not UTF-8 text \(byte 4\)"),
        ("svamp", "SVAMP.json", b"", "no usable SVAMP records in .*: the files hold no records"),
        ("svamp", "SVAMP.json", b"[1]", r"record 0 is not a JSON object \(got int\)"),
        ("svamp", "SVAMP.json", b'[{"id": "chal-1"}]', r"has no 'ID'; its columns are 'id'"),
        ("commonsense_qa", "train_rand_split.jsonl", b"\n", "no usable CommonsenseQA records in"),
        ("commonsense_qa", "train_rand_split.jsonl", b"\xff\n", r"jsonl:1 is not UTF-8 text"),
    ],
)
def test_bad_files_are_named(tmp_path, cache, name, file, content, said):
    if name == "commonsense_qa":
        write_csqa(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=f"(?s){said}"):
        load(name, tmp_path, cache, need_rationales=False)


@pytest.mark.parametrize("name", ["asdiv", "svamp", "commonsense_qa"])
def test_missing_files_are_named(tmp_path, cache, name):
    first = next(iter(sources.PUBLISHED[name].files["paper"]))
    with pytest.raises(
        UserError, match=rf"No such file: .*{first}\. Expected .*--config\.data\.path"
    ):
        load(name, tmp_path, cache, need_rationales=False)


# The data at hand.


@pytest.mark.parametrize(
    ("name", "counts"),
    [("asdiv", (14, 3, 3)), ("svamp", (17, 3, 0)), ("commonsense_qa", (0, 0, 20))],
)
def test_samples_are_read_and_their_answers_found(shared_data, cache, name, counts):
    folder = shared_data / "samples"
    for split, count in zip(published.SPLITS, counts, strict=True):
        if not count:
            with pytest.raises(UserError, match=f"The {split} split of {name} has no records"):
                load(name, folder, cache, split, need_rationales=False)
            continue
        records, rejected = load(name, folder, cache, split, need_rationales=False)
        assert (len(records), rejected) == (count, [])
        for record in records:
            assert bool(record.steps) == (name != "commonsense_qa")
            sentence = TEMPLATES["answer_template"].replace("{answer}", record.answer)
            found = answers.extract_answer(
                f"{record.rationale} {sentence}", sources.answer_kind(name)
            )
            assert found == record.answer
