"""CommonsenseQA's original files and the paper's splits. The data set has no rationales."""

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

from kpod_jax.data import jsonl, tables
from kpod_jax.data.published import DataSet, File, Splits, id_in, read_asset

_SOURCE = "https://s3.amazonaws.com/commensenseqa"
_FILES = {
    name: File(f"{_SOURCE}/{name}") for name in ("train_rand_split.jsonl", "dev_rand_split.jsonl")
}
_LETTERS = "ABCDE"


def parse(row: Mapping[str, Any]) -> dict[str, str]:
    """Appends the choices to the question, "Where? (A) bank (B) library ...".

    The answer is the letter of the correct choice. Two layouts are supported: the original one,
    {"question": {"stem", "choices": [{"label", "text"}]}}, and Hugging Face's, {"question",
    "choices": {"label": [], "text": []}}.

    Raises:
      ValueError: a part is missing, or the answer is not one of the choices.
    """
    inner = row.get("question")
    if isinstance(inner, Mapping):
        stem, choices = jsonl.text_column(inner, "stem"), inner.get("choices")
    else:
        stem, choices = jsonl.text_column(row, "question"), row.get("choices")
    if isinstance(choices, Mapping):
        labels, texts = choices.get("label"), choices.get("text")
        if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
            raise ValueError("has 'choices' whose 'label' and 'text' are not lists of equal length")
        choices = [{"label": a, "text": b} for a, b in zip(labels, texts, strict=True)]
    if not isinstance(choices, list) or not all(isinstance(c, Mapping) for c in choices):
        raise ValueError("has no list of 'choices', each with 'label' and 'text'")
    pairs = [(jsonl.text_column(c, "label"), jsonl.text_column(c, "text")) for c in choices]
    labels = [label for label, _ in pairs]
    if len(pairs) < 2 or labels != list(_LETTERS[: len(pairs)]):
        raise ValueError(f"has choices {', '.join(labels)}; expected A, B, ... up to E")
    answer = jsonl.text_column(row, "answerKey", required=False)
    if answer not in labels:
        raise ValueError(
            f"has the 'answerKey' {answer!r}; expected one of {', '.join(labels)} (the official "
            "test file has no answers: dev is the test split)"
        )
    listed = " ".join(f"({label}) {text}" for label, text in pairs)
    return {"question": f"{stem} {listed}", "rationale": "", "answer": answer}


def split_of(splits: Splits, stem: str, id_: str) -> str | None:
    """Returns the split of a record.

    The paper's test split is dev; its validation split is part of train. Records are identified by
    the first 32 bits of the hash of their id; those in neither validation nor test are in train.
    """
    del stem
    code = hashlib.sha256(id_.encode()).hexdigest()[:8]
    hashes = _hashes()
    if code in hashes["test"]:
        return "test"
    return "validation" if splits == "paper" and code in hashes["validation"] else "train"


@functools.cache
def _hashes() -> dict[str, frozenset[str]]:
    value = read_asset("commonsense_qa")
    return {
        split: frozenset(value[split][i : i + 8] for i in range(0, len(value[split]), 8))
        for split in ("validation", "test")
    }


DATA_SET = DataSet(
    name="commonsense_qa",
    title="CommonsenseQA",
    homepage="https://www.tau-nlp.org/commonsenseqa",
    answer_kind="choice",
    files={"paper": _FILES, "official": _FILES},
    single_file="commonsense_qa.jsonl",
    read=tables.json_lines,
    id_of=id_in("id"),
    parse=parse,
    split_of=split_of,
    notes={
        "paper": "",
        "official": "CommonsenseQA's official test split has no answers: dev is the test split, "
        "and a tenth of train, chosen by the hash of the question, is held out for validation",
    },
    has_rationales=False,
)
