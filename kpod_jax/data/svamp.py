"""SVAMP's original file with the paper's splits, and a mirror's 700/300 split."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from kpod_jax.data import answers, formulas, jsonl, tables
from kpod_jax.data.published import DataSet, File, Splits, coded_split, id_in
from kpod_jax.utils.errors import UserError

_SOURCE = "https://raw.githubusercontent.com/arkilpatel/SVAMP/main/SVAMP.json"
_MIRROR = "https://huggingface.co/datasets/ChilleD/SVAMP/resolve"
_REVISION = "5e0bf1e5e7c0e9c4bc39180d224f41f3f801b7ef"


def read(path: pathlib.Path) -> Iterator[tables.Row]:
    """Yields the rows of a JSON list of objects, or of a JSONL file.

    Raises:
      UserError: the file is neither; the message gives the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start + 1}); save it as UTF-8."
        ) from error
    if not text.lstrip().startswith("["):
        yield from tables.json_lines(path)
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON: {error}. Expected SVAMP's original file, a list of objects."
        ) from error
    for index, row in enumerate(rows):
        valid = isinstance(row, dict)
        problem = "" if valid else f"is not a JSON object (got {type(row).__name__})"
        yield tables.Row(index, f"{path} record {index}", row if valid else None, problem)


def parse(row: Mapping[str, Any]) -> dict[str, str]:
    """Joins body and question, turns the equation into a rationale, and parses the answer.

    Raises:
      ValueError: a column is missing or the answer is not a number.
    """
    body = jsonl.text_column(row, "Body", required=False)
    if body and body[-1].isalnum():
        body += "."
    text = jsonl.text_column(row, "Answer")
    number = answers.extract_answer(text)
    if number is None:
        raise ValueError(f"has an 'Answer' that is not a number: {text!r}")
    example = {
        "question": f"{body} {jsonl.text_column(row, 'Question')}".strip(),
        "rationale": "",
        "answer": number,
    }
    try:
        equation = jsonl.text_column(row, "Equation")
        return example | {"rationale": formulas.rationale(equation, number)}
    except ValueError as error:
        return example | {"problem": str(error)}


def split_of(splits: Splits, stem: str, id_: str) -> str | None:
    """Returns the split of a record; the official splits are the mirror's files."""
    if splits == "official":
        return stem
    return coded_split("svamp", "chal-", id_)


DATA_SET = DataSet(
    name="svamp",
    title="SVAMP",
    homepage="https://github.com/arkilpatel/SVAMP",
    answer_kind="number",
    files={
        "paper": {"SVAMP.json": File(_SOURCE)},
        "official": {
            name: File(f"{_MIRROR}/{_REVISION}/{name}") for name in ("train.json", "test.json")
        },
    },
    read=read,
    id_of=id_in("ID"),
    parse=parse,
    split_of=split_of,
    notes={
        "paper": "",
        "official": "SVAMP itself is one test set of 1000; this is the usual 700/300 split, from "
        "ChilleD/SVAMP on the Hugging Face hub, and a tenth of train, chosen by the hash of the "
        "question, is held out for validation",
    },
)
