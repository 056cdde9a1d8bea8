"""Custom data: JSONL, CSV, a Hugging Face data set, or a user's `CustomDataSet` class.

Columns of files may have any names; a class yields rows with the names in COLUMNS.
"""

import abc
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from kpod_jax.data import jsonl, tables
from kpod_jax.data.published import SPLITS, tenth_of
from kpod_jax.data.records import Loaded, Record, Rejected
from kpod_jax.data.steps import split_steps
from kpod_jax.utils import plugins
from kpod_jax.utils.errors import UserError

FORMATS = ("jsonl", "csv", "huggingface")
COLUMNS = {"question": "question", "rationale": "rationale", "answer": "answer", "id": "id"}


class CustomDataSet(abc.ABC):
    """A custom data set, selected by its import path in `data.name`.

    Attributes:
      answer_kind: one of `answers.KINDS`, used if `data.answer_kind` is empty.
    """

    answer_kind: ClassVar[str] = "number"

    def __init__(self, path: str) -> None:
        """Initializes the data set.

        Args:
          path: `data.path`, a file, a folder or "". A change to it makes the records stale.
        """
        self.path = path

    @abc.abstractmethod
    def rows(self, split: str) -> Iterable[Mapping[str, Any]]:
        """Returns the rows of the train, validation or test split, in a deterministic order.

        A row has the keys question, rationale, answer and optionally id; its values are strings.
        Rows without a question or answer, or with a duplicate id, are rejected, as are training
        rows without a rationale, unless a teacher's rationales are used.
        """


def class_of(name: str) -> type[CustomDataSet] | None:
    """Returns the class that an import path names, or None if `name` is not an import path.

    Raises:
      UserError: it cannot be imported, or is not a `CustomDataSet`.
    """
    return (
        plugins.load_subclass(name, "data.name", CustomDataSet) if plugins.is_path(name) else None
    )


def load(
    name: str,
    split: str,
    path: str,
    *,
    columns: Mapping[str, str],
    separator: str,
    need_rationale: bool,
) -> Loaded:
    """Loads one split of a custom data set.

    Args:
      name: one of FORMATS, or the import path of a class.
      split: "train", "validation" or "test".
      path: for jsonl and csv, a folder with one file per split, or one file, whose questions are
        divided 8 : 1 : 1 by hash. For huggingface, see `tables.hub_rows`; a data set with one
        split is divided the same way. For a class, passed to its constructor.
      columns: maps the names in COLUMNS to the data's column names.
      separator: text that ends a step.
      need_rationale: whether a training record without a rationale is broken.

    Raises:
      UserError: there is nothing to read.
    """
    rows, whole, stem = _open(name, split, path)
    loaded = Loaded()
    place_of: dict[str, str] = {}
    for row in rows:
        # Broken rows of an undivided file count as train.
        part = "train" if whole else split
        id_ = default_id = f"{stem}-{row.index}"
        try:
            if row.values is None:
                raise ValueError(row.problem)
            question = column(row.values, "question", columns)
            part = _part_of(question) if whole else split
            answer = column(row.values, "answer", columns)
            # Only training records need rationales.
            required = need_rationale and part == "train"
            rationale = column(row.values, "rationale", columns, required=required)
            id_ = column(row.values, "id", columns, required=False) or default_id
            if id_ in place_of:
                raise ValueError(f"repeats the id {id_!r} of {place_of[id_]}")
            place_of[id_] = row.place
            if part == split:
                steps = split_steps(rationale, separator)
                loaded.records.append(Record(id_, question, steps, answer))
            else:
                loaded.other_split_ids.add(id_)
                loaded.other_split_questions.append(question)
        except ValueError as error:
            if part == split:
                loaded.broken.append(Rejected(id_, f"{row.place} {error}"))
    return loaded


def column(
    row: Mapping[str, Any], name: str, columns: Mapping[str, str], *, required: bool = True
) -> str:
    """Returns the text of a column in COLUMNS, or "" if it is missing and not required.

    Raises:
      ValueError: it is missing, empty or not text; the message lists the existing columns and how
        to select one.
    """
    actual = columns.get(name, name)
    if actual not in row and required:
        raise ValueError(
            f"has no {actual!r}; its columns are {', '.join(map(repr, row)) or 'none'} (set "
            f"--config.data.columns.{name} to the right one)"
        )
    return jsonl.text_column(row, actual, required=required)


def files_of(name: str, path: str) -> list[pathlib.Path]:
    """Returns the existing files of a custom data set; none for a Hugging Face data set."""
    source = pathlib.Path(path).expanduser()
    if name == "huggingface":
        return []
    if name not in FORMATS:
        return [source] if path and source.exists() else []
    splits = [source / f"{split}.{name}" for split in SPLITS]
    return [file for file in (source, *splits) if file.is_file()]


def _open(name: str, split: str, path: str) -> tuple[Iterator[tables.Row], bool, str]:
    """Returns the rows, whether they cover all splits, and the prefix of default ids."""
    if name == "huggingface":
        rows, whole = tables.hub_rows(path, split)
        return rows, whole, "all" if whole else split
    if (kind := class_of(name)) is not None:
        return _rows_of(kind(path), name, split), False, split
    source = pathlib.Path(path).expanduser()
    whole = source.is_file()
    file = source if whole else source / f"{split}.{name}"
    if not path or not file.is_file():
        line = (
            'each line is {"question", "rationale", "answer"[, "id"]}'
            if name == "jsonl"
            else "the first line names the columns question, rationale, answer[, id]"
        )
        reason = f"{file} does not exist" if path else "data.path is not set"
        raise UserError(
            f"Cannot read the {split} split: {reason}. Set --config.data.path to a folder with "
            f"train.{name}, validation.{name} and test.{name}, or to one .{name} file; {line}."
        )
    read = tables.json_lines if name == "jsonl" else tables.csv_rows
    return read(file), whole, file.stem


def _rows_of(data_set: CustomDataSet, name: str, split: str) -> Iterator[tables.Row]:
    for index, values in enumerate(data_set.rows(split)):
        place = f"{name} {split} row {index}"
        if isinstance(values, Mapping):
            yield tables.Row(index, place, values, "")
        else:
            yield tables.Row(index, place, None, f"is {values!r:.80}; expected a mapping")


def _part_of(question: str) -> str:
    """Returns the split of a question in an undivided file."""
    tenth = tenth_of(question)
    return "train" if tenth < 8 else "validation" if tenth == 8 else "test"
