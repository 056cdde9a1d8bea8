"""Describes published data sets: their files, row parsers and splits."""

import dataclasses
import functools
import hashlib
import importlib.resources
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from kpod_jax.data import jsonl
from kpod_jax.data.tables import Row

Splits = Literal["paper", "official"]
SPLITS = ("train", "validation", "test")
# Split codes in the assets, one letter per record.
_SPLIT_OF_CODE = {"t": "train", "v": "validation", "e": "test"}


@dataclasses.dataclass(frozen=True)
class File:
    """A file at the data set's source.

    Attributes:
      url: URL of the file.
      sha256: hash of its bytes; "" skips the check.
    """

    url: str
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A published data set; each one's module defines it as DATA_SET.

    Attributes:
      name: value of data.name that selects it.
      title: name for display.
      homepage: URL of its homepage.
      answer_kind: one of `answers.KINDS`.
      files: required files by name, for each kind of splits that it supports.
      read: yields the rows of a file.
      id_of: returns the id of a row, unique in the data set, from the row, the stem of its file's
        name and its index; raises ValueError if there is none.
      parse: returns question, rationale and answer of a row's values and, if there is no
        rationale, the reason as `problem`; raises ValueError if the row is unusable.
      split_of: returns "train", "validation", "test" or, for a record in no split, None, from the
        kind of splits, the stem of the file's name and the id. Official splits have no validation
        split: a tenth of train is held out for it.
      notes: notes for the user, for each kind of splits.
      single_file: name of a single file that may replace all of `files` in a folder.
      source_id: returns the id that the data set's source uses for a record, from the record's id.
      has_rationales: whether `parse` returns rationales.
    """

    name: str
    title: str
    homepage: str
    answer_kind: str
    files: Mapping[Splits, Mapping[str, File]]
    read: Callable[[pathlib.Path], Iterator[Row]]
    id_of: Callable[[Mapping[str, Any], str, int], str]
    parse: Callable[[Mapping[str, Any]], dict[str, str]]
    split_of: Callable[[Splits, str, str], str | None]
    notes: Mapping[Splits, str]
    single_file: str = ""
    source_id: Callable[[str], str] = str
    has_rationales: bool = True


def id_in(column: str) -> Callable[[Mapping[str, Any], str, int], str]:
    """Returns a `DataSet.id_of` that reads ids from a column."""
    return lambda row, stem, index: jsonl.text_column(row, column)


def coded_split(name: str, prefix: str, id_: str) -> str | None:
    """Returns the paper's split of a numbered record, from the data set's asset.

    Args:
      name: name of the data set.
      prefix: prefix of its ids, before a number from 1.
      id_: id of the record.

    Returns:
      The split, or None if the record is not in the asset or in no split.
    """
    number, codes = id_.removeprefix(prefix), _codes(name)
    if not number.isdecimal() or not 1 <= int(number) <= len(codes):
        return None
    return _SPLIT_OF_CODE.get(codes[int(number) - 1])


@functools.cache
def _codes(name: str) -> str:
    return read_asset(name)["splits"]


@dataclasses.dataclass
class Part:
    """One split of a data set, as parsed from its files.

    Attributes:
      examples: {id, question, rationale, answer, problem}, all strings.
      rejected: (id, reason, whether the record is broken, not just outside the splits).
    """

    examples: list[dict[str, str]] = dataclasses.field(default_factory=list)
    rejected: list[tuple[str, str, bool]] = dataclasses.field(default_factory=list)


def read_parts(data_set: DataSet, splits: Splits, paths: Sequence[pathlib.Path]) -> dict[str, Part]:
    """Reads a data set's files into splits, in file order.

    Broken records of unknown split count as train.

    Raises:
      UserError: a file cannot be read.
    """
    parts = {split: Part() for split in SPLITS}
    places: dict[str, str] = {}
    for path in paths:
        for row in data_set.read(path):
            id_, split, has_split = f"{data_set.name}-{path.stem}-{row.index}", None, False
            try:
                id_ = _id_of(data_set, row, path.stem)
                split, has_split = data_set.split_of(splits, path.stem, id_), True
                if row.values is None:
                    raise ValueError(row.problem)
                if id_ in places:
                    raise ValueError(f"repeats the id {id_!r} of {places[id_]}")
                places[id_] = row.place
                example = {"id": id_, "problem": ""} | data_set.parse(row.values)
            except ValueError as error:
                bad = (id_, f"{row.place} {error}", split is not None or not has_split)
                parts[split or "train"].rejected.append(bad)
                continue
            if split is None:
                reason = f"{row.place} is in none of the {splits} splits"
                parts["train"].rejected.append((id_, reason, False))
                continue
            if splits == "official" and split == "train":
                split = "validation" if tenth_of(example["question"]) == 8 else "train"
            parts[split].examples.append(example)
    return parts


def _id_of(data_set: DataSet, row: Row, stem: str) -> str:
    try:
        return data_set.id_of(row.values or {}, stem, row.index)
    except ValueError as error:
        raise ValueError(row.problem or str(error)) from error


def tenth_of(question: str) -> int:
    """Returns the tenth, 0 to 9, that a question falls into by its hash."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 10


def read_asset(name: str) -> dict[str, Any]:
    """Reads the packaged JSON file that assigns a data set's records to splits."""
    asset = importlib.resources.files("kpod_jax") / "assets" / f"{name}_splits.json"
    return json.loads(asset.read_text(encoding="utf-8"))
