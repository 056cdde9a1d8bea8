"""Data sets of one's own, in the shapes and formats that people have."""

import gzip
import json
import pathlib
from typing import Any

import pytest

from kpod_jax.data import custom, published, sources
from kpod_jax.utils.errors import UserError

SPLITS = published.SPLITS
STEPS = "48 / 2 = 24. 48 + 24 = 72."
# 72 is the answer in all formats.
QUESTION, ANSWER = "How many clips?", "72"
GOOD = {"question": QUESTION, "rationale": STEPS, "answer": ANSWER}


def rows(count: int, start: int = 0, **changes: Any) -> list[dict[str, Any]]:
    return [GOOD | {"question": f"{i} and {i}?"} | changes for i in range(start, start + count)]


def lines(values) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def csv_text(values, separator=",", end="\n") -> str:
    cells = [list(values[0]), *(list(map(str, value.values())) for value in values)]
    return end.join(separator.join(f'"{cell}"' for cell in line) for line in cells) + end


def parquet(values) -> bytes:
    import io

    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), file)
    return file.getvalue()


def write(path: pathlib.Path, content: str | bytes, encoding: str = "utf-8") -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def load(path, split="train", name="jsonl", **changes: Any):
    options: dict[str, Any] = {"max_rejected_fraction": 1.0} | changes
    return sources.load_records(name, split, path=str(path), **options)


def load_all(path, name="jsonl", **options):
    return {split: load(path, split, name, **options)[0] for split in SPLITS}


# Shapes of files.

MANY = rows(60)
PRETTY = json.dumps(MANY, indent=2)
SHAPES = {
    "lines.jsonl": lines(MANY),
    "lines.json": lines(MANY),
    "lines.ndjson": lines(MANY),
    "blank.jsonl": "\n" + lines(MANY).replace("\n", "\n\n"),
    "windows.jsonl": "\ufeff" + lines(MANY).replace("\n", "\r\n"),
    "powershell.jsonl": lines(MANY).encode("utf-16"),
    "zipped.jsonl.gz": gzip.compress(lines(MANY).encode()),
    "zipped_unsaid.jsonl": gzip.compress(lines(MANY).encode()),
    "compact.json": json.dumps(MANY),
    "pretty.json": PRETTY,
    "pretty.jsonl": PRETTY,
    "tabs.json": json.dumps(MANY, indent="\t").replace("\n", "\r\n"),
    "bom.json": "\ufeff" + PRETTY,
    "zipped.json.gz": gzip.compress(PRETTY.encode()),
    "one_per_line.json": "[\n" + ",\n".join(map(json.dumps, MANY)) + "\n]\n",
    "wrapped.json": json.dumps({"version": 1, "data": MANY}),
    "wrapped_pretty.json": json.dumps({"version": 1, "examples": MANY}, indent=2),
    "objects.json": "\n".join(json.dumps(row, indent=2) for row in MANY),
    "plain.csv": csv_text(MANY),
    "excel.csv": "\ufeff" + csv_text(MANY, ";", "\r\n"),
    "excel_hint.csv": "sep=;\r\n" + csv_text(MANY, ";", "\r\n"),
    "unicode_text.csv": csv_text(MANY, "\t", "\r\n").encode("utf-16"),
    "trailing.csv": csv_text(MANY).replace("\n", ",,\n"),
    "tabs.tsv": csv_text(MANY, "\t"),
    "zipped.csv.gz": gzip.compress(csv_text(MANY).encode()),
    "UPPER.CSV": csv_text(MANY),
    "table.parquet": parquet(MANY),
}


@pytest.mark.parametrize("name", ["jsonl", "csv"])
@pytest.mark.parametrize("file", SHAPES)
def test_a_file_of_any_shape_is_read_whole(tmp_path, file, name):
    parts = load_all(write(tmp_path / file, SHAPES[file]), name)
    found = {r.question: (r.rationale, r.answer) for part in parts.values() for r in part}
    assert found == {row["question"]: (STEPS, "72") for row in MANY}
    assert sum(map(len, parts.values())) == 60 and min(map(len, parts.values())) > 0


# Folders, with the number of records in each split.

T, V, E = rows(30), rows(5, 100), rows(7, 200)
FOLDERS = {
    "lines": {"train.jsonl": lines(T), "validation.jsonl": lines(V), "test.jsonl": lines(E)},
    "arrays": {"train.json": json.dumps(T), "val.json": json.dumps(V), "test.json": json.dumps(E)},
    "csv": {"train.csv": csv_text(T), "dev.csv": csv_text(V), "test.csv": csv_text(E)},
    "mixed": {"train.parquet": parquet(T), "valid.csv": csv_text(V), "test.jsonl": lines(E)},
    "zipped": {
        f"{name}.jsonl.gz": gzip.compress(lines(part).encode())
        for name, part in (("train", T), ("dev", V), ("test", E))
    },
    "hub": {
        "README.md": "# A data set",
        "data/train-00000-of-00002.parquet": parquet(T[:20]),
        "data/train-00001-of-00002.parquet": parquet(T[20:]),
        "data/validation-00000-of-00001.parquet": parquet(V),
        "data/test-00000-of-00001.parquet": parquet(E),
    },
    "named": {
        "my_set_train.jsonl": lines(T),
        "my_set_dev.jsonl": lines(V),
        "my_set_test.jsonl": lines(E),
        "dataset_infos.json": "{}",
    },
    "folders": {
        "train/part-1.jsonl": lines(T[:10]),
        "train/part-2.jsonl": lines(T[10:20]),
        "train/part-10.jsonl": lines(T[20:]),
        "val/part-1.jsonl": lines(V),
        "test/part-1.jsonl": lines(E),
    },
    "beside_others": {
        "train.jsonl": lines(T),
        "train_rationales.jsonl": lines(V),
        "train.csv": csv_text(V),
        "validation.jsonl": lines(V),
        "test.jsonl": lines(E),
        "notes.json": "{}",
    },
}


@pytest.mark.parametrize("name", ["jsonl", "huggingface"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_with_splits_is_read_as_it_is(tmp_path, folder, name):
    for file, content in FOLDERS[folder].items():
        write(tmp_path / file, content)
    parts = load_all(tmp_path, name)
    questions = {split: [r.question for r in part] for split, part in parts.items()}
    expected = {"train": T, "validation": V, "test": E}
    assert questions == {s: [row["question"] for row in part] for s, part in expected.items()}
    assert len({r.id for r in parts["train"]}) == 30
    config = _data(name, tmp_path)
    assert sources.notes(config) == []


def _data(name, path, **options):
    from kpod_jax.config.loading import section

    return section("data", name, {"path": str(path), **options})


@pytest.mark.parametrize(
    ("own", "held_out"),
    [
        (("train",), ("validation", "test")),
        (("train", "test"), ("validation",)),
        (("train", "validation"), ("test",)),
    ],
)
@pytest.mark.parametrize("count", [3, 10, 200])
@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_missing_splits_are_held_out_of_train(tmp_path, own, held_out, count, form):
    values = {"train": rows(count), "validation": V, "test": E}
    form_of = {"jsonl": lines, "csv": csv_text, "parquet": parquet}[form]
    for split in own:
        write(tmp_path / f"{split}.{form}", form_of(values[split]))
    parts, again = load_all(tmp_path, form), load_all(tmp_path, "jsonl")
    assert parts == again
    whole = [row["question"] for row in values["train"]]
    divided = [r.question for split in ("train", *held_out) for r in parts[split]]
    assert sorted(divided) == sorted(whole)
    for split in held_out:
        assert 0.3 * count / 10 < len(parts[split]) <= max(1, 2 * count / 10)
    for split in set(own) - {"train"}:
        assert [r.question for r in parts[split]] == [row["question"] for row in values[split]]
    (note,) = sources.notes(_data("jsonl", tmp_path))
    assert "held out" in note and all(split in note for split in held_out)


def test_the_hubs_gsm8k_works_as_it_is(tmp_path):
    """Of two configurations, `main` is read; validation is held out; solutions are divided."""
    solution = "48/2 = <<48/2=24>>24 in May.\n48+24 = <<48+24=72>>72 in all.\n#### 72"
    values = [{"question": f"{i}?", "answer": solution} for i in range(40)]
    for folder, part in (("main", values), ("socratic", rows(3))):
        write(tmp_path / f"{folder}/train-00000-of-00001.parquet", parquet(part))
        write(tmp_path / f"{folder}/test-00000-of-00001.parquet", parquet(part[:2]))
    parts = load_all(tmp_path, "huggingface")
    assert len(parts["train"]) + len(parts["validation"]) == 40 and len(parts["test"]) == 2
    assert len(parts["validation"]) > 0
    record = parts["train"][0]
    assert record.steps == ("48/2 = 24 in May.\n", "48+24 = 72 in all.") and record.answer == "72"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "has no data file.*train.jsonl"),
        ({"README.md": "x"}, "has no data file"),
        ({"test.jsonl": lines(E), "validation.jsonl": lines(V)}, "no train split"),
        ({"a_train.jsonl": "{}", "b_train.jsonl": "{}"}, "a_train.jsonl, b_train.jsonl"),
        ({"a.jsonl": "{}", "b.jsonl": "{}"}, "a.jsonl, b.jsonl"),
        ({"train-00000-of-00002.jsonl": lines(T)}, "1 of the 2 files"),
        ({"en/train.jsonl": lines(T), "de/train.jsonl": lines(T)}, "several folders: de, en"),
        ({"train.json": "[" + lines(T[:1]) + ","}, r"train\.json:2 is not valid JSON"),
        ({"train.json": PRETTY[: len(PRETTY) // 2]}, r"train\.json:\d+ is not valid JSON"),
        ({"train.json": "[" * 200_000}, "nested too deeply"),
        ({"train.jsonl.gz": gzip.compress(lines(T).encode())[:-30]}, "cut off or damaged"),
        ({"train.parquet": b"PAR1 and nothing"}, r"Cannot read .*train\.parquet as a Parquet"),
        ({"train.csv": b"PK\x03\x04..."}, "Excel workbook.*CSV"),
        ({"train.jsonl": "version https://git-lfs.github.com/spec/v1\n"}, "git lfs pull"),
        ({"train.csv": "question,answer,answer\na,b,c\n"}, "names the column 'answer' twice"),
        ({"train.jsonl": b"PAR1 and nothing"}, "suffix .parquet"),
    ],
)
def test_what_cannot_be_read_ends_in_one_message(tmp_path, files, expected):
    for file, content in files.items():
        write(tmp_path / file, content)
    with pytest.raises(UserError, match=f"(?s){expected}") as told:
        load(tmp_path)
    assert "\n" not in str(told.value)


# Formats of records.

THOUGHT = "Half of 48 is 24. Together that is 72."


def chat(reply: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": reply, **more}]


FORMATS = {
    "plain": (GOOD, STEPS),
    "capitals": ({"Question": QUESTION, "Rationale": STEPS, "Answer": 72}, STEPS),
    "gsm8k": ({"question": QUESTION, "answer": f"{STEPS}\n#### 72"}, STEPS),
    "prompt_completion": ({"prompt": QUESTION, "completion": f"{STEPS} The answer is 72."}, STEPS),
    "conversational_prompt": (
        {"prompt": chat("")[:1], "completion": chat(f"{STEPS}\n\n**Answer:** 72")[1:]},
        STEPS,
    ),
    "openai": ({"messages": chat(f"{STEPS}\nThe answer is 72.")}, STEPS),
    "openai_system": (
        {"messages": [{"role": "system", "content": "Help."}, *chat(f"{STEPS}\n#### 72")]},
        STEPS,
    ),
    "openai_parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
                {"role": "assistant", "content": [{"type": "text", "text": f"{STEPS}\n#### 72"}]},
            ]
        },
        STEPS,
    ),
    "openai_reasoning": (
        {"messages": chat("The answer is 72.", reasoning_content=THOUGHT)},
        THOUGHT,
    ),
    "anthropic_parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": THOUGHT},
                        {"type": "text", "text": "72"},
                    ],
                },
            ]
        },
        THOUGHT,
    ),
    "messages_with_answer": ({"messages": chat(STEPS), "answer": "72", "source": "x"}, STEPS),
    "sharegpt": (
        {
            "id": "a",
            "conversations": [
                {"from": "human", "value": QUESTION},
                {"from": "gpt", "value": f"{STEPS} Therefore, the answer is 72."},
            ],
        },
        STEPS,
    ),
    "sharegpt_system": (
        {
            "system": "Help.",
            "conversations": [
                {"from": "system", "value": "Help."},
                {"from": "user", "value": QUESTION},
                {"from": "assistant", "value": f"{STEPS}\n\\boxed{{72}}"},
            ],
        },
        STEPS,
    ),
    "bespoke": (
        {
            "conversations": [
                {"from": "user", "value": QUESTION},
                {
                    "from": "assistant",
                    "value": f"<|begin_of_thought|>\n\n{THOUGHT}\n\n<|end_of_thought|>\n\n"
                    "<|begin_of_solution|>\n\nSo \\boxed{72}.\n\n<|end_of_solution|>",
                },
            ]
        },
        THOUGHT,
    ),
    "alpaca": ({"instruction": QUESTION, "input": "", "output": f"{STEPS}\n#### 72"}, STEPS),
    "math_instruct": (
        {"source": "x.json", "instruction": QUESTION, "output": f"{STEPS} The answer is 72."},
        STEPS,
    ),
    "openr1": (
        {
            "problem": QUESTION,
            "solution": STEPS,
            "answer": "72",
            "source": "olympiads",
            "messages": chat("Other."),
            "generations": ["<think>x</think>"],
        },
        STEPS,
    ),
    "numina": (
        {"source": "cn", "problem": QUESTION, "solution": f"{STEPS} Thus \\boxed{{72}} clips."},
        f"{STEPS} Thus \\boxed{{72}} clips.",
    ),
    "numina_null": (
        {"problem": QUESTION, "solution": f"{STEPS}\n\n$\\boxed{{72}}$", "answer": None},
        STEPS,
    ),
    "reasoning_content": (
        {"question": QUESTION, "reasoning_content": THOUGHT, "content": "The answer is **72**."},
        THOUGHT,
    ),
    "reasoning_and_answer": (
        {"question": QUESTION, "reasoning": THOUGHT, "answer": "72"},
        THOUGHT,
    ),
    "think": (
        {"question": QUESTION, "response": f"<think>\n{THOUGHT}\n</think>\n\nIt is \\boxed{{72}}."},
        THOUGHT,
    ),
    "think_unopened": ({"prompt": QUESTION, "completion": f"{THOUGHT}\n</think>\n72"}, THOUGHT),
    "think_empty": (
        {"prompt": QUESTION, "completion": f"<think>\n\n</think>\n\n{STEPS}\nAnswer: 72"},
        STEPS,
    ),
    "think_in_answer": (
        {"question": QUESTION, "answer": f"<think>{THOUGHT}</think><answer>72</answer>"},
        THOUGHT,
    ),
    "think_in_rationale": (GOOD | {"rationale": f"<think>{THOUGHT}</think>\n72"}, THOUGHT),
    "meta_math": (
        {"query": QUESTION, "response": f"{STEPS}\n#### 72\nThe answer is: 72", "type": "x"},
        STEPS,
    ),
    "input_target": ({"input": QUESTION, "target": f"{STEPS} So the answer is 72."}, STEPS),
    "input_output": ({"input": QUESTION, "output": f"{STEPS}\nFinal answer: 72"}, STEPS),
    "open_math": (
        {"problem": QUESTION, "generated_solution": STEPS, "expected_answer": "72"},
        STEPS,
    ),
    "medical_o1": ({"Question": QUESTION, "Complex_CoT": THOUGHT, "Response": "72"}, THOUGHT),
    "nemotron": (
        {"input": chat("")[:1], "output": f"<think>{THOUGHT}</think>72", "reasoning": "on"},
        THOUGHT,
    ),
    "steps": (
        {"question": QUESTION, "steps": ["48 / 2 = 24. ", "48 + 24 = 72."], "answer": "72"},
        STEPS,
    ),
}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("format_", FORMATS)
def test_a_format_is_recognised(tmp_path, format_, form):
    row, rationale = FORMATS[format_]
    content = {"jsonl": lines, "parquet": parquet}[form]([row])
    write(tmp_path / f"train.{form}", content)
    for split in ("validation", "test"):
        write(tmp_path / f"{split}.{form}", content)
    [record], rejected = load(tmp_path, max_rejected_fraction=0.0)
    assert rejected == []
    assert (record.question, record.rationale, record.answer) == (QUESTION, rationale, ANSWER)
    config = _data("jsonl", tmp_path)
    said = sources.notes(config)
    assert all("\n" not in note for note in said)
    if format_ in ("plain", "think_in_rationale"):
        assert said == []
    else:
        assert len(said) == 1 and "--config.data.columns" in said[0]


def test_formats_may_be_named(tmp_path):
    """Columns that are named are taken as they are, the others are recognised."""
    row = {"prompt": QUESTION, "response": "Wrong.", "cot": STEPS, "final": "72", "answer": "1"}
    path = write(tmp_path / "train.jsonl", lines([row] * 5))
    write(tmp_path / "validation.jsonl", "")
    write(tmp_path / "test.jsonl", "")
    columns = {"rationale": "cot", "answer": "final"}
    records, rejected = load(tmp_path, columns=columns)
    assert not rejected and len(records) == 5
    assert (records[0].question, records[0].rationale, records[0].answer) == (QUESTION, STEPS, "72")
    (note,) = sources.notes(_data("jsonl", tmp_path, columns=columns))
    assert "'prompt'" in note and "'cot'" in note and "'final'" in note
    with pytest.raises(UserError, match=rf"{path}:1 has no 'ask'; its columns are 'prompt'.*"):
        load(tmp_path, columns={"question": "ask"}, max_rejected_fraction=0.0)


def turns(*names: str) -> dict[str, Any]:
    return {"messages": [{"role": name, "content": f"{name} says 72"} for name in names]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (turns("user", "assistant", "user", "assistant"), "is a conversation of 4 turns"),
        (turns("system", "user"), "has no text of the assistant"),
        (turns("assistant"), "has no text of the user"),
        (turns("user", "tool", "assistant"), "has a turn of 'tool'"),
        ({"messages": []}, "'messages' of type list"),
        ({"messages": "text"}, "states no answer in 'messages'|which is not a number"),
        ({"messages": chat(None, tool_calls=[{}])}, "has no text of the assistant"),
        ({"messages": chat([{"type": "image_url", "image_url": {}}])}, "part of type 'image_url'"),
        ({"messages": [{"role": "user", "content": "\ud800?"}, *chat("72")[1:]]}, "surrogate"),
        ({"prompt": QUESTION, "completion": "72"}, "has no rationale in 'completion'"),
        ({"prompt": QUESTION, "completion": STEPS}, "which is not a number"),
        ({"prompt": QUESTION, "completion": f"<think>{THOUGHT}"}, "states no answer|not a number"),
        ({"question": QUESTION, "answer": STEPS}, "which is not a number"),
        ({"question": QUESTION, "answer": "72"}, "has no 'rationale'"),
        ({"text": "Q: 2 + 3? A: 5"}, "has no 'question'; its columns are 'text'"),
        ({f"c{i}": i for i in range(5000)}, "has no 'question'; its columns are 'c0'"),
        (GOOD | {"answer": "Paris"}, "'Paris', which is not a number"),
        (GOOD | {"answer": STEPS}, "which is not a number"),
        (GOOD | {"answer": "NaN"}, "'NaN' stands for a missing value|not a number"),
        (GOOD | {"answer": float("nan")}, "empty 'answer'"),
        (GOOD | {"answer": float("inf")}, "infinite 'answer'"),
        (GOOD | {"answer": None}, "'answer' of type NoneType"),
        (GOOD | {"answer": ""}, "empty 'answer'"),
        (GOOD | {"answer": {"value": 72}}, "'answer' of type dict"),
        (GOOD | {"question": None}, "'question' of type NoneType"),
        (GOOD | {"question": float("nan")}, "empty 'question'"),
        (GOOD | {"question": "nan"}, "'nan' stands for a missing value"),
        (GOOD | {"rationale": None}, "'rationale' of type NoneType"),
        (GOOD | {"rationale": float("nan")}, "empty 'rationale'"),
        (GOOD | {"rationale": "None"}, "'None' stands for a missing value"),
        (GOOD | {"rationale": "\udc80"}, "surrogate"),
        (GOOD | {"id": "first"}, "repeats the id 'first' of"),
        (GOOD | {"id": ["a"]}, "'id' of type list"),
    ],
)
def test_a_bad_record_is_rejected_by_file_and_line(tmp_path, row, reason):
    good = row if "messages" in row or "completion" in row or "text" in row else GOOD
    first = {"messages": chat(f"{STEPS}\n#### 72")} if "messages" in row else GOOD
    if "completion" in row:
        first = {"prompt": QUESTION, "completion": f"{STEPS}\n#### 72"}
    elif good is not GOOD or "rationale" not in row:
        first = None
    values = ([first | {"id": "first"}] if first else []) + [row]
    content = "".join(json.dumps(value) + "\n" for value in values)
    path = write(tmp_path / "train.jsonl", content)
    write(tmp_path / "validation.jsonl", lines([GOOD]))
    write(tmp_path / "test.jsonl", lines([GOOD]))
    with pytest.raises(UserError, match=f"(?s){path}:{len(values)} .*(?:{reason})") as told:
        load(tmp_path, max_rejected_fraction=0.0)
    assert len(str(told.value)) < 1000


@pytest.mark.parametrize("missing", ["nan", "NaN", "", "None", "null", "<NA>"])
@pytest.mark.parametrize("column", ["question", "rationale", "answer"])
def test_a_cell_without_a_value_is_none(tmp_path, column, missing):
    path = write(tmp_path / "train.csv", csv_text([GOOD, GOOD | {column: missing}]))
    write(tmp_path / "validation.csv", "")
    write(tmp_path / "test.csv", "")
    records, [bad] = load(tmp_path)
    assert len(records) == 1 and bad.reason.startswith(f"{path}:3 has an empty {column!r}")


def test_ids_without_a_value_are_none(tmp_path):
    ids = ["a", None, float("nan"), "", "nan", 7, 8.0]
    write(tmp_path / "train.jsonl", "".join(json.dumps(GOOD | {"id": i}) + "\n" for i in ids))
    write(tmp_path / "validation.jsonl", "")
    write(tmp_path / "test.jsonl", "")
    records, rejected = load(tmp_path)
    assert not rejected
    assert [r.id for r in records] == ["a", "train-1", "train-2", "train-3", "train-4", "7", "8"]


def test_parquet_values_of_pandas(tmp_path):
    """Whole numbers beside a missing one are floats; missing texts are null."""
    pandas = pytest.importorskip("pandas")
    values = [
        GOOD | {"answer": 72},
        GOOD | {"answer": None},
        GOOD | {"answer": 72, "rationale": None},
    ]
    pandas.DataFrame(values).to_parquet(tmp_path / "train.parquet")
    for split in ("validation", "test"):
        write(tmp_path / f"{split}.jsonl", "")
    [record], rejected = load(tmp_path)
    assert record.answer == "72"
    assert "row 1 has " in rejected[0].reason and "'answer'" in rejected[0].reason
    assert "row 2 has " in rejected[1].reason and "'rationale'" in rejected[1].reason


class Rows(custom.CustomDataSet):
    def rows(self, split: str):
        import numpy as np

        yield {"question": np.str_("a?"), "rationale": STEPS, "answer": np.int64(72)}
        yield {"question": "b?", "rationale": STEPS, "answer": np.float32("nan"), "id": "b"}
        yield {"question": "c?", "rationale": STEPS, "answer": "Paris", "id": "c"}
        yield {"question": "d?", "rationale": STEPS, "answer": "72", "id": np.int64(3)}


def test_values_of_numpy(tmp_path):
    name = f"{__name__}:Rows"
    records, rejected = load(tmp_path, name=name)
    assert [(r.question, r.answer, r.id) for r in records] == [
        ("a?", "72", "train-0"),
        ("d?", "72", "3"),
    ]
    assert "row 1 has an empty 'answer'" in rejected[0].reason
    assert "row 2 has the answer 'Paris'" in rejected[1].reason


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [
        ("number", "1,080", "1,080"),
        ("number", "$72", "$72"),
        ("number", "\\boxed{72}", "72"),
        ("number", "$72$", "72"),
        ("number", f"{STEPS}\n#### 72", "72"),
        ("number", 72.0, "72"),
        ("number", 0.5, "0.5"),
        ("choice", "B", "B"),
        ("choice", "(B)", "(B)"),
        ("yes_no", True, "yes"),
        ("yes_no", False, "no"),
        ("yes_no", "Yes", "Yes"),
        ("number", True, None),
        ("choice", "72", None),
        ("yes_no", "maybe", None),
    ],
)
def test_a_gold_answer_is_kept_as_it_is_written(tmp_path, kind, answer, expected):
    path = write(tmp_path / "all.jsonl", lines(rows(20, answer=answer)))
    options = {"answer_kind": kind, "max_rejected_fraction": 0.0}
    if expected is None:
        with pytest.raises(UserError, match=rf"{path}:\d+ has"):
            load(path, **options)
    else:
        assert {r.answer for r in load(path, **options)[0]} == {expected}


@pytest.mark.parametrize(
    "sentence",
    [
        " The answer is 72.",
        " the answer is 72",
        " So the answer is 72.",
        " Therefore, the answer is 72.",
        " Thus, the final answer is 72 clips.",
        " Hence the answer is $72.",
        " The answer is: 72",
        " Answer: 72",
        "\nAnswer: 72.",
        "\n\n**Answer:** 72",
        "\n\n**Final answer:** 72",
        "\n\n**Final Answer: 72**",
        "\n\n### Final Answer\n72",
        "\n\n### Answer: 72",
        "\n\n**Final Answer**\n\n\\[ \\boxed{72} \\]",
        "\n\nFinal answer:\n$$\\boxed{72}$$",
        "\n#### 72",
        " #### 72",
        "\n#### 72\nThe answer is: 72",
        "\n\\boxed{72}",
        " $\\boxed{72}$.",
        " The final answer is $\\boxed{72}$.",
        " The answer is **72**.",
        "\n<answer>72</answer>",
        "\n<answer> 72 </answer>\n",
        " So the answer is 72. The answer is 72.0.",
    ],
)
def test_a_rationale_does_not_end_with_the_answer_sentence_twice(tmp_path, sentence):
    path = write(tmp_path / "all.jsonl", lines(rows(20, rationale=STEPS + sentence)))
    assert {r.rationale for r in load(path)[0]} == {STEPS}


@pytest.mark.parametrize(
    "rationale",
    [
        "The answer is 72.",
        "\\boxed{72}",
        "#### 72",
        f"{STEPS} The answer is 71.",
        f"{STEPS} So the answer is 24 + 48 = 72.",
        f"{STEPS} So she sold 72.",
        f"{STEPS} Thus, \\boxed{{72}} clips were sold.",
        f"{STEPS} The answer is 72 because 24 and 48 are 72.",
        "The answer is the sum.\n24 + 48 = 72",
        "What is asked is the answer. Half of 48 is 24, so 72",
    ],
)
def test_what_says_more_than_the_answer_stays(tmp_path, rationale):
    path = write(tmp_path / "all.jsonl", lines(rows(20, rationale=rationale)))
    assert {r.rationale for r in load(path)[0]} == {rationale}


def test_a_clause_with_the_answer_is_cut_off(tmp_path):
    text = "Half of 48 is 24, and 48 + 24 = 72, so the answer is 72."
    path = write(tmp_path / "all.jsonl", lines(rows(20, rationale=text)))
    assert {r.rationale for r in load(path)[0]} == {"Half of 48 is 24, and 48 + 24 = 72."}


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 72. " * 30_000,
        "so the answer is " * 30_000,
        "\\boxed{" * 60_000,
        "<answer>" * 60_000,
        "answer " * 60_000 + ": ",
        "####" * 100_000,
        "\n**Final Answer**" * 30_000,
        "#" * 400_000,
    ],
)
def test_long_texts_take_linear_time(tmp_path, text):
    import time

    path = write(tmp_path / "all.jsonl", lines(rows(3, rationale=STEPS + text)))
    start = time.perf_counter()
    load(path)
    assert time.perf_counter() - start < 20


def test_deep_and_long_lines_spoil_their_own_record_alone(tmp_path):
    deep = '{"question": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}"
    huge = json.dumps(GOOD | {"id": "huge", "rationale": "One more. " * 300_000})
    digits = '{"question": "q?", "rationale": "r r", "answer": ' + "1" * 5000 + "}"
    write(tmp_path / "train.jsonl", "\n".join([json.dumps(GOOD), deep, huge, digits]))
    write(tmp_path / "validation.jsonl", "")
    write(tmp_path / "test.jsonl", "")
    records, rejected = load(tmp_path)
    assert [r.id for r in records] == ["train-0", "huge"]
    assert [bad.reason.partition(" ")[0][-2:] for bad in rejected] == [":2", ":4"]


class FakeHub:
    """The part of `datasets` that reads the hub, with GSM8K's two configurations."""

    def __init__(self, names=("main", "socratic")):
        self.names = names

    def load_dataset(self, id_, config=None):
        if config not in self.names:
            raise ValueError("Config name is missing.\nPlease pick one among the available configs")
        values = [{"question": f"{i}?", "answer": f"{STEPS}\n#### 72"} for i in range(50)]
        return {"train": values[:40], "test": values[40:], "config": [{"name": config}]}

    def get_dataset_config_names(self, id_):
        return list(self.names)


def test_a_configuration_on_the_hub_is_chosen_if_it_is_main(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", FakeHub())
    parts = load_all("openai/gsm8k", "huggingface")
    assert len(parts["train"]) + len(parts["validation"]) == 40 and len(parts["test"]) == 10
    assert parts == load_all("openai/gsm8k:main", "huggingface")
    (note, other) = sources.notes(_data("huggingface", "openai/gsm8k"))
    assert "from 'answer'" in note + other and "held out" in other
    monkeypatch.setitem(sys.modules, "datasets", FakeHub(("en", "de")))
    with pytest.raises(UserError, match="Please pick one"):
        load("me/mine", name="huggingface")
