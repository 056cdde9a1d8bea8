"""Custom data: files, a Hugging Face data set, or a user's `CustomDataSet` class.

Columns of files may have any names; a class yields rows with the names in COLUMNS.
"""

import abc
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from kpod_jax.data import record_formats, split_files, tables
from kpod_jax.data.published import SPLITS
from kpod_jax.data.record_formats import COLUMNS as COLUMNS
from kpod_jax.data.record_formats import Format
from kpod_jax.data.record_formats import column as column
from kpod_jax.data.record_store import RecordStore
from kpod_jax.data.records import Loaded, Record, Rejected
from kpod_jax.data.rows import Row
from kpod_jax.data.steps import split_steps
from kpod_jax.utils import files, plugins
from kpod_jax.utils.errors import UserError

# Each of FILES reads files of all these formats, and takes its own first.
FILES = ("jsonl", "json", "csv", "parquet")
FORMATS = (*FILES, "huggingface")
# The format of a class's rows.
FIXED = Format("question", "", "rationale", "", "answer", "id")


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
    kind: str,
    need_rationale: bool,
    others: bool = False,
) -> Loaded:
    """Loads one split of a custom data set.

    Args:
      name: one of FORMATS, or the import path of a class.
      split: "train", "validation" or "test".
      path: for files, a file or a folder, see `split_files.find`; for huggingface, also what
        `tables.hub_parts` reads. Splits that the data set lacks are held out of its train split,
        see `split_files.divide`. For a class, passed to its constructor.
      columns: maps the names in COLUMNS to the data's column names; see `record_formats`.
      separator: text that ends a step.
      kind: kind of the answers.
      need_rationale: whether a training record without a rationale is broken.
      others: whether to also return ids and questions of records of other splits.

    Raises:
      UserError: there is nothing to read.
    """
    source = _open(name, path, split)
    part, into = _division(source, split)
    rows, format_ = source.parts[part], FIXED
    if source.recognize:
        format_ = record_formats.recognize(_sample(rows), columns)
    # Broken rows count as train.
    questions = (_question_of(row, format_) for row in rows())
    split_of = split_files.divider((q if isinstance(q, str) else None for q in questions), into)
    store = RecordStore()
    loaded = Loaded(store)

    def records() -> Iterator[Record]:
        place_of: dict[str, str] = {}
        for row in rows():
            question, id_ = _question_of(row, format_), f"{source.stems[part]}-{row.index}"
            part_of_row = split_of(question if isinstance(question, str) else None)
            try:
                if isinstance(question, ValueError):
                    raise question
                assert row.values is not None
                answer, rationale = record_formats.read_answer_and_rationale(
                    row.values,
                    format_,
                    question,
                    kind,
                    # Only training records need rationales.
                    need_rationale=need_rationale and part_of_row == "train",
                )
                given = {"id": format_.id}
                id_ = record_formats.column(row.values, "id", given, required=False) or id_
                if id_ in place_of:
                    raise ValueError(f"repeats the id {id_!r} of {place_of[id_]}")
                place_of[id_] = row.place
                if part_of_row == split:
                    yield Record(id_, question, split_steps(rationale, separator), answer)
                elif others:
                    loaded.other_split_ids.add(id_)
                    loaded.other_split_questions.append(question)
            except ValueError as error:
                if part_of_row == split:
                    loaded.broken.append(Rejected(id_, f"{row.place} {error}"))

    store.extend(records())
    return loaded


def notes(name: str, path: str, columns: Mapping[str, str]) -> list[str]:
    """Returns what the user should know about how a data set is read.

    Raises:
      UserError: there is nothing to read.
    """
    if name not in FORMATS:
        return []
    source = _open(name, path, "train")
    part, into = _division(source, "train")
    sample = _sample(source.parts[part])
    format_ = record_formats.recognize(sample, columns)
    result = []
    if not record_formats.is_usual(format_, sample) and any(
        format_.question in row for row in sample
    ):
        result.append(f"{path}: {format_}; --config.data.columns sets others")
    if len(into) > 1:
        held_out = " and ".join(into[1:])
        which = "the" if part == split_files.ALL else f"the {part} split's"
        result.append(
            f"{path} has no split for {held_out}: a tenth of {which} questions is held out for "
            f"{'each' if len(into) > 2 else 'it'}, chosen by their hashes"
        )
    return result


def files_of(name: str, path: str) -> list[pathlib.Path]:
    """Returns the existing files of a custom data set; none for a Hugging Face data set."""
    if name == "huggingface" or files.is_remote(path):  # Own readers take any address.
        return []
    source = files.expand(path)
    if name not in FORMATS:
        return [source] if path and source.exists() else []
    if source.is_file():
        return [source]
    parts = split_files.find(source, f".{name}") if path and source.is_dir() else {}
    return [file for part in parts.values() for file in part.files]


class _Source(NamedTuple):
    """A data set as it lies.

    Attributes:
      parts: by its own splits or ALL, a function that yields the rows.
      stems: by the same, the prefix of default ids.
      whole: whether a single part is divided, whatever its name.
      recognize: whether its columns may have any names.
    """

    parts: Mapping[str, Callable[[], Iterator[Row]]]
    stems: Mapping[str, str]
    whole: bool
    recognize: bool = True


def _open(name: str, path: str, split: str) -> _Source:
    if (kind := class_of(name)) is not None:
        rows = functools.partial(_rows_of, kind(path), name)
        return _Source(
            {s: functools.partial(rows, s) for s in SPLITS}, {s: s for s in SPLITS}, False, False
        )
    source, parts = files.expand(path), {}
    is_hub, suffix = name == "huggingface", ".jsonl" if name == "huggingface" else f".{name}"
    if path and source.is_file():
        parts = {split_files.ALL: split_files.Part(tables.stem_of(source), (source,))}
    elif path and source.is_dir() and not tables.is_saved(source):
        try:
            parts = split_files.find(source, suffix)
        except UserError:
            if not is_hub:  # The package knows how a repository lists its files.
                raise
    if parts:
        readers = {
            split: functools.partial(_rows_in, part.files, suffix) for split, part in parts.items()
        }
        return _Source(readers, {split: part.stem for split, part in parts.items()}, is_hub)
    if not is_hub and not tables.is_saved(source):
        reason = "data.path is not set"
        if path:
            reason = f"{source} {'has no data file' if source.is_dir() else 'does not exist'}"
        raise UserError(
            f"Cannot read the {split} split: {reason}. Set --config.data.path to a file, or to a "
            f"folder with train.{name}, validation.{name} and test.{name}; JSON (lines or an "
            "array), CSV and Parquet files are read, with columns such as question, rationale, "
            "answer[, id]."
        )
    found = tables.hub_parts(path)
    if len(found) > 1:
        found = {
            split: found[name] for split, name in split_files.canonical(found, path).items()
        } or found
    stems = {split: "all" if len(found) == 1 else split for split in found}
    return _Source(found, stems, True)


def _division(source: _Source, split: str) -> tuple[str, tuple[str, ...]]:
    return split_files.division(split, source.parts, source.whole)


def _sample(rows: Callable[[], Iterator[Row]]) -> list[Mapping[str, Any]]:
    first = itertools.islice(rows(), record_formats.SAMPLE)
    return [row.values for row in first if row.values is not None]


def _rows_in(files: Sequence[pathlib.Path], suffix: str) -> Iterator[Row]:
    """Yields the rows of several files, numbered on from one to the next."""
    start = 0
    for file in files:
        last = start
        for row in tables.read(file, suffix):
            last = start + row.index + 1
            yield row._replace(index=start + row.index)
        start = last


def _rows_of(data_set: CustomDataSet, name: str, split: str) -> Iterator[Row]:
    for index, values in enumerate(data_set.rows(split)):
        place = f"{name} {split} row {index}"
        if isinstance(values, Mapping):
            yield Row(index, place, values, "")
        else:
            yield Row(index, place, None, f"is {values!r:.80}; expected a mapping")


def _question_of(row: Row, format_: Format) -> str | ValueError:
    """Returns the question of a row, or why there is none."""
    try:
        if row.values is None:
            raise ValueError(row.problem)
        return record_formats.read_question(row.values, format_)
    except ValueError as error:
        return error
