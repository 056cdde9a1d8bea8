"""ASDiv's original file and the paper's splits.

The validation and test splits match the paper's exactly. The train split matches only in size: it
is every other problem whose answer is a single number, without duplicate questions.
"""

import pathlib
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from typing import Any

from kpod_jax.data import answers, formulas, jsonl, tables
from kpod_jax.data.published import DataSet, File, Splits, coded_split, id_in
from kpod_jax.utils.errors import UserError

_SOURCE = "https://raw.githubusercontent.com/chaochun/nlu-asdiv-dataset/master/dataset/ASDiv.xml"
# A number, then its unit: "9 (apples)".
_ANSWER = re.compile(
    r"(?P<number>[-+]?\$?\d[\d,]*(?:\.\d+)?(?:\s?\d*/\d+)?\s?%?)\s*(?:\([^()]*\))?"
)


class _Builder(ET.TreeBuilder):
    def doctype(self, *declared: str | None) -> None:
        """Rejects document type declarations, which can expand a small file enormously."""
        raise ValueError(f"it declares a document type, {declared[0]!r}")


def read(path: pathlib.Path) -> Iterator[tables.Row]:
    """Yields the problems in an XML file.

    Raises:
      UserError: the file cannot be read or is not well-formed; the message gives line and column.
    """
    try:
        with path.open("rb") as file:
            root = ET.parse(file, ET.XMLParser(target=_Builder())).getroot()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (ET.ParseError, ValueError, LookupError) as error:
        line = f":{error.position[0]}" if isinstance(error, ET.ParseError) else ""
        raise UserError(
            f"{path}{line} is not valid XML: {error}. Expected ASDiv's original file, ASDiv.xml."
        ) from error
    for index, problem in enumerate(root.iter("Problem")):
        values = {child.tag: child.text or "" for child in problem} | dict(problem.attrib)
        yield tables.Row(index, f"{path} problem {index}", values, "")


def parse(row: Mapping[str, Any]) -> dict[str, str]:
    """Joins body and question, turns the formula into a rationale, and strips the answer's unit.

    Raises:
      ValueError: an element is missing, or the answer is not a single number.
    """
    body = jsonl.text_column(row, "Body", required=False)
    question = f"{body} {jsonl.text_column(row, 'Question')}".strip()
    text = jsonl.text_column(row, "Answer")
    match = _ANSWER.fullmatch(text)
    number = answers.extract_answer(match["number"]) if match else None
    if number is None:
        raise ValueError(f"has an 'Answer' that is not a single number: {text!r:.80}")
    example = {"question": question, "rationale": "", "answer": number}
    try:
        formula = jsonl.text_column(row, "Formula")
        return example | {"rationale": formulas.rationale(formula, number)}
    except ValueError as error:
        return example | {"problem": str(error)}


def split_of(splits: Splits, stem: str, id_: str) -> str | None:
    """Returns the paper's split of a problem, or None if the paper leaves it out."""
    del splits, stem
    return coded_split("asdiv", "nluds-", id_)


DATA_SET = DataSet(
    name="asdiv",
    title="ASDiv",
    homepage="https://github.com/chaochun/nlu-asdiv-dataset",
    answer_kind="number",
    files={"paper": {"ASDiv.xml": File(_SOURCE)}},
    read=read,
    id_of=id_in("ID"),
    parse=parse,
    split_of=split_of,
    notes={
        "paper": "ASDiv's validation and test splits are the paper's; its train split has the "
        "paper's size, but may contain different problems"
    },
)
