"""A user's own data: JSONL, CSV or a Hugging Face data set, or what a class of the user's reads.

Columns of files may have any names; a class gives its rows those of COLUMNS.
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
    """A data set that a class of the user's reads, named by its import path in `data.name`.

    Attributes:
      answer_kind: of `answers.KINDS`, where `data.answer_kind` names none.
    """

    answer_kind: ClassVar[str] = "number"

    def __init__(self, path: str) -> None:
        """Takes `data.path`, a file or a folder, or "". Its change makes the records stale."""
        self.path = path

    @abc.abstractmethod
    def rows(self, split: str) -> Iterable[Mapping[str, Any]]:
        """Rows of the train, validation or test split: question, rationale, answer, perhaps id.

        Values are texts. What has no question or answer, or an id twice, is listed as rejected, as
        is a training row without a rationale unless a teacher's are given. The order must be the
        same each time.
        """


def class_of(name: str) -> type[CustomDataSet] | None:
    """The user's class of an import path; None of other names.

    Raises:
      UserError: it cannot be imported, or is no `CustomDataSet`.
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
    """One split of a user's own data.

    Args:
      name: of FORMATS, or of a class.
      split: "train", "validation" or "test".
      path: jsonl and csv: a folder with a file of each split, or one file, whose questions are
        divided 8 : 1 : 1 by their hashes; huggingface: see `tables.hub_rows`; one split alone is
        divided likewise; of a class: what that takes.
      columns: the names of the user's columns, by those of COLUMNS.
      separator: that ends a step.
      need_rationale: whether a training record without a rationale is broken.

    Raises:
      UserError: there is nothing to read.
    """
    rows, whole, stem = _open(name, split, path)
    loaded = Loaded()
    place_of: dict[str, str] = {}
    for row in rows:
        # Broken rows of a whole file are the train split's.
        part = "train" if whole else split
        id_ = default_id = f"{stem}-{row.index}"
        try:
            if row.values is None:
                raise ValueError(row.problem)
            question = column(row.values, "question", columns)
            part = _part_of(question) if whole else split
            answer = column(row.values, "answer", columns)
            # A test set needs no rationales.
            needed = need_rationale and part == "train"
            rationale = column(row.values, "rationale", columns, required=needed)
            id_ = column(row.values, "id", columns, required=False) or default_id
            if id_ in place_of:
                raise ValueError(f"has the id {id_!r} of {place_of[id_]}")
            place_of[id_] = row.place
            if part == split:
                steps = split_steps(rationale, separator)
                loaded.records.append(Record(id_, question, steps, answer))
            else:
                loaded.elsewhere.add(id_)
        except ValueError as error:
            if part == split:
                loaded.broken.append(Rejected(id_, f"{row.place} {error}"))
    return loaded


def column(
    row: Mapping[str, Any], name: str, columns: Mapping[str, str], *, required: bool = True
) -> str:
    """The text of one of COLUMNS, whatever the user calls it; "" where it may be missing and is.

    Raises:
      ValueError: it is missing, empty or no text; the message has the columns that there are, and
        how to name the right one.
    """
    theirs = columns.get(name, name)
    if theirs not in row and required:
        raise ValueError(
            f"has no {theirs!r}; its columns are {', '.join(map(repr, row)) or 'none'} (name the "
            f"right one with --config.data.columns.{name})"
        )
    return jsonl.text_column(row, theirs, required=required)


def files_of(name: str, path: str) -> list[pathlib.Path]:
    """What holds a user's data, of what there is; nothing for a Hugging Face one."""
    source = pathlib.Path(path).expanduser()
    if name == "huggingface":
        return []
    if name not in FORMATS:
        return [source] if path and source.exists() else []
    splits = [source / f"{split}.{name}" for split in SPLITS]
    return [file for file in (source, *splits) if file.is_file()]


def _open(name: str, split: str, path: str) -> tuple[Iterator[tables.Row], bool, str]:
    """Rows, whether they are of all splits, and what ids begin with where there are none."""
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
            'a line is {"question", "rationale", "answer"[, "id"]}'
            if name == "jsonl"
            else "the first line names the columns question, rationale, answer[, id]"
        )
        raise UserError(
            f"There is no {file if path else 'data.path'} to read the {split} split from. Set "
            f"--config.data.path to a folder with train.{name}, validation.{name} and test.{name}, "
            f"or to one .{name} file; {line}."
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
    """The split that a question of an undivided file belongs to."""
    tenth = tenth_of(question)
    return "train" if tenth < 8 else "validation" if tenth == 8 else "test"
