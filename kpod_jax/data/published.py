"""What a published data set is to us: its files, how a row of them is read, and its splits."""

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
# Letters of the assets that have one for each record.
_SPLIT_OF_CODE = {"t": "train", "v": "validation", "e": "test"}


@dataclasses.dataclass(frozen=True)
class File:
    """A file at the data set's own source.

    Attributes:
      url: of the file.
      sha256: of its bytes; "" where it is not known to us: then it is not checked.
    """

    url: str
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A published data set; each has a module of its own with one of these, DATA_SET.

    Attributes:
      name: of data.name.
      title: as it calls itself.
      homepage: for people.
      answer_kind: of `answers.KINDS`.
      files: for each kind of splits that it has, the files that it needs, by their names.
      read: the rows of a file.
      id_of: a row's id, unique in the data set; raises ValueError where it has none. It is given
        the row, the stem of its file's name and its index.
      parse: question, rationale, answer and, where the rationale is empty, the reason, of a row's
        values; raises ValueError where they cannot be used.
      split_of: "train", "validation" or "test" for the stem of a file's name and an id, or None
        where the record is in none. Official splits know no validation: it is made of a tenth of
        their train split.
      notes: what a user should know of its splits.
      instead: the name of one file that may stand in a folder for all of `files`.
      own_id: the id that the data set's source has for a record of ours.
      has_rationales: whether `parse` finds or makes any.
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
    instead: str = ""
    own_id: Callable[[str], str] = str
    has_rationales: bool = True


def id_in(column: str) -> Callable[[Mapping[str, Any], str, int], str]:
    """`DataSet.id_of` of a data set whose rows have ids of their own, in a column."""
    return lambda row, stem, index: jsonl.text_column(row, column)


def coded_split(name: str, prefix: str, id_: str) -> str | None:
    """The paper's split of a numbered record, by its letter in the asset of a data set.

    Args:
      name: of the data set.
      prefix: of its ids, before a number from 1.
      id_: of the record.

    Returns:
      None for a record that the asset does not have or that is in no split.
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
    """What a data set's files hold of one split.

    Attributes:
      examples: id, question, rationale, answer and problem, all texts.
      rejected: id, reason, and whether it is broken rather than left out by the data set's splits.
    """

    examples: list[dict[str, str]] = dataclasses.field(default_factory=list)
    rejected: list[tuple[str, str, bool]] = dataclasses.field(default_factory=list)


def read_parts(data_set: DataSet, splits: Splits, paths: Sequence[pathlib.Path]) -> dict[str, Part]:
    """Reads a data set's files into its splits, in the order of the files.

    What is broken and of no known split counts as train's.

    Raises:
      UserError: a file cannot be read at all.
    """
    parts = {split: Part() for split in SPLITS}
    places: dict[str, str] = {}
    for path in paths:
        for row in data_set.read(path):
            id_, split, known = f"{data_set.name}-{path.stem}-{row.index}", None, False
            try:
                id_ = _id_of(data_set, row, path.stem)
                split, known = data_set.split_of(splits, path.stem, id_), True
                if row.values is None:
                    raise ValueError(row.problem)
                if id_ in places:
                    raise ValueError(f"has the id {id_!r} of {places[id_]}")
                places[id_] = row.place
                example = {"id": id_, "problem": ""} | data_set.parse(row.values)
            except ValueError as error:
                bad = (id_, f"{row.place} {error}", split is not None or not known)
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
    """Which of ten equal parts a question belongs to, by its hash, wherever it stands: 0 to 9."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 10


def read_asset(name: str) -> dict[str, Any]:
    """A JSON file of this package's that says which record is in which split."""
    asset = importlib.resources.files("kpod_jax") / "assets" / f"{name}_splits.json"
    return json.loads(asset.read_text(encoding="utf-8"))
