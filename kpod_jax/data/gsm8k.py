"""GSM8K's original files and the paper's splits."""

import functools
import re
from collections.abc import Mapping
from typing import Any

from kpod_jax.data import answers, jsonl, tables
from kpod_jax.data.published import DataSet, File, Splits, read_asset

_SOURCE = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
_FILES = {
    "train.jsonl": File(
        f"{_SOURCE}/train.jsonl",
        "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    ),
    "test.jsonl": File(
        f"{_SOURCE}/test.jsonl", "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"
    ),
}
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")


def parse(row: Mapping[str, Any]) -> dict[str, str]:
    """Returns the question, the rationale without calculator annotations, and the answer.

    The rationale may be empty. The answer is the number after "####", without commas.

    Raises:
      ValueError: a column or the number is missing.
    """
    question = jsonl.text_column(row, "question")
    solution, mark, answer = jsonl.text_column(row, "answer").rpartition("####")
    if not mark:
        raise ValueError("has an 'answer' that does not end with '#### NUMBER'")
    number = answers.extract_answer(f"#### {answer}")
    if number is None:
        raise ValueError(f"has an 'answer' without a number after '####': {answer.strip()!r}")
    return {
        "question": question,
        "rationale": _ANNOTATION.sub("", solution).strip(),
        "answer": number,
    }


def id_of(row: Mapping[str, Any], stem: str, index: int) -> str:
    """Returns an id made of file and line number, from 0; the lines themselves have no ids."""
    del row
    return f"gsm8k-{stem}-{index}"


def split_of(splits: Splits, stem: str, id_: str) -> str | None:
    """Returns the split of a record; the paper's validation split is part of test.jsonl."""
    if stem == "train" or splits == "official":
        return stem
    validation = _validation_lines()
    line = int(id_.rpartition("-")[2])
    if line >= len(validation):
        return None
    return "validation" if validation[line] == "1" else "test"


def source_id(id_: str) -> str:
    """Returns the line number of a line of train.jsonl; other ids are returned unchanged."""
    return id_.removeprefix("gsm8k-train-")


@functools.cache
def _validation_lines() -> str:
    """Returns a "1" for each line of test.jsonl in the paper's validation split, else "0"."""
    value = read_asset("gsm8k")
    digits = value["validation"]
    return bin(int(digits, 16))[2:].zfill(4 * len(digits))[: value["lines"]]


DATA_SET = DataSet(
    name="gsm8k",
    title="GSM8K",
    homepage="https://github.com/openai/grade-school-math",
    answer_kind="number",
    files={"paper": _FILES, "official": _FILES},
    read=tables.json_lines,
    id_of=id_of,
    parse=parse,
    split_of=split_of,
    notes={
        "paper": "",
        "official": "GSM8K has no official validation split: a tenth of train, chosen by the hash "
        "of the question, is held out for validation",
    },
    source_id=source_id,
)
