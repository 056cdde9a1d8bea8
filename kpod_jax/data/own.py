"""A user's own data: JSONL, CSV or a Hugging Face data set, whose columns may have any names."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from kpod_jax.data import jsonl, tables
from kpod_jax.data.published import tenth_of
from kpod_jax.data.records import Loaded, Record, Rejected
from kpod_jax.data.steps import split_steps
from kpod_jax.errors import UserError

FORMATS = ("jsonl", "csv", "huggingface")
COLUMNS = {"question": "question", "rationale": "rationale", "answer": "answer", "id": "id"}


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
      name: of FORMATS.
      split: "train", "validation" or "test".
      path: jsonl and csv: a folder with a file of each split, or one file, whose questions are
        divided 8 : 1 : 1 by their hashes; huggingface: see `tables.hub_rows`; one split alone is
        divided likewise.
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
    """The files that hold a user's data, of those that there are; none for a Hugging Face one."""
    source = pathlib.Path(path).expanduser()
    if name == "huggingface":
        return []
    splits = [source / f"{split}.{name}" for split in ("train", "validation", "test")]
    return [file for file in (source, *splits) if file.is_file()]


def _open(name: str, split: str, path: str) -> tuple[Iterator[tables.Row], bool, str]:
    """Rows, whether they are of all splits, and what ids begin with where there are none."""
    if name == "huggingface":
        rows, whole = tables.hub_rows(path, split)
        return rows, whole, "all" if whole else split
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


def _part_of(question: str) -> str:
    """The split that a question of an undivided file belongs to."""
    tenth = tenth_of(question)
    return "train" if tenth < 8 else "validation" if tenth == 8 else "test"
