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


def load(path, split="train", name="jsonl", **options):
    options = {"max_rejected_fraction": 1.0} | options
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
    if format_ not in ("plain", "gsm8k", "think_in_answer", "think_in_rationale"):
        assert len(said) == 1 and "--config.data.columns" in said[0]
