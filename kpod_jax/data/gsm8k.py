"""GSM8K's original files, the paper's splits of them, and a teacher's rationales for them."""

import importlib.resources
import json
import pathlib
import re
from typing import Any, Literal

from kpod_jax import answers
from kpod_jax.data import jsonl

Splits = Literal["paper", "official"]

_SOURCE = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data"
URLS = {name: f"{_SOURCE}/{name}.jsonl" for name in ("train", "test")}
SHA256 = {
    "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    "test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
}
SPLITS: dict[str, tuple[str, ...]] = {
    "paper": ("train", "validation", "test"),
    "official": ("train", "test"),
}
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")


def lines_of_split(splits: Splits, split: str) -> tuple[str, frozenset[int] | None]:
    """Where a split lies.

    Returns:
      The file's name, "train" or "test", and its lines counted from 0; None is all of them.
    """
    if splits == "official" or split == "train":
        return split, None
    asset = importlib.resources.files("kpod_jax") / "assets" / "gsm8k_splits.json"
    value = json.loads(asset.read_text(encoding="utf-8"))
    digits, count = value["validation"], value["lines"]
    bits = bin(int(digits, 16))[2:].zfill(4 * len(digits))
    wanted = "1" if split == "validation" else "0"
    return "test", frozenset(i for i in range(count) if bits[i] == wanted)


def parse(row: dict[str, Any]) -> dict[str, str]:
    """Question, rationale without calculator annotations, and answer of a line.

    The rationale may be empty. The answer is the number after "####" without its commas.

    Raises:
      ValueError: a column is missing or there is no such number.
    """
    question = jsonl.text_column(row, "question")
    solution, mark, answer = jsonl.text_column(row, "answer").rpartition("####")
    if not mark:
        raise ValueError("has an 'answer' that does not end with '#### NUMBER'")
    number = answers.extract_answer(f"#### {answer}")
    if number is None:
        raise ValueError(f"has no number after '####' in its 'answer' but {answer.strip()!r}")
    return {
        "question": question,
        "rationale": _ANNOTATION.sub("", solution).strip(),
        "answer": number,
    }


def read_teacher(
    path: pathlib.Path, gold: dict[int, tuple[str, str]]
) -> tuple[dict[int, str], dict[int, str]]:
    """Reads a teacher's rationales for train.jsonl.

    Rows have `id` (0-based line of train.jsonl), `question`, `rationale` and `answer`.

    Args:
      path: the JSONL file.
      gold: question and answer of each line of train.jsonl.

    Returns:
      Rationale of each line that has a good one; and what is wrong with each bad row, file and line
      named, by the row's line in the file.

    Raises:
      UserError: the file cannot be read.
    """
    rationales: dict[int, str] = {}
    problems: dict[int, str] = {}
    for number, row, problem in jsonl.read_rows(path):
        try:
            if row is None:
                raise ValueError(problem)
            line = _line_number(row, gold)
            question, answer = gold[line]
            if line in rationales:
                raise ValueError(f"repeats the id {line}")
            if jsonl.text_column(row, "question") != question:
                raise ValueError(f"has another question than line {line} of train.jsonl, its id")
            stated = jsonl.text_column(row, "answer")
            if not answers.answers_equal(stated, answer):
                raise ValueError(f"has the answer {stated!r} where the data set's is {answer!r}")
            rationales[line] = jsonl.text_column(row, "rationale")
        except ValueError as error:
            problems[number] = f"{path}:{number} {error}"
    return rationales, problems


def _line_number(row: dict[str, Any], gold: dict[int, tuple[str, str]]) -> int:
    text = jsonl.text_column(row, "id")
    if not text.isdecimal() or int(text) not in gold:
        raise ValueError(
            f"has the id {text!r}; expected the number of a line of train.jsonl, from 0"
        )
    return int(text)
