"""Rows of JSONL, CSV and Hugging Face data sets, each with its place; a bad row ends nothing."""

import csv
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from kpod_jax.data import jsonl
from kpod_jax.utils.errors import UserError

# A rationale of some megabytes is a field of a CSV file, too.
_LONGEST_FIELD = 1 << 26


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      index: from 0; of a text file's line in the case of JSONL.
      place: file and line, or the like, for a user to find it.
      values: of its columns; None where it cannot be read.
      problem: why, else "".
    """

    index: int
    place: str
    values: Mapping[str, Any] | None
    problem: str


def json_lines(path: pathlib.Path) -> Iterator[Row]:
    """Rows of a file of one JSON object a line.

    Raises:
      UserError: the file cannot be read at all.
    """
    for number, values, problem in jsonl.read_rows(path):
        yield Row(number - 1, f"{path}:{number}", values, problem)


def csv_rows(path: pathlib.Path) -> Iterator[Row]:
    """Rows of a CSV file (of a TSV file by its name) whose first line names the columns.

    Fields are quoted with `"`, doubled inside, and may hold line ends. The file is UTF-8.

    Raises:
      UserError: the file cannot be read at all.
    """
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        # Bytes that are no text become half characters: the row is bad, those after it are not.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            yield from _csv_rows(path, reader)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    finally:
        csv.field_size_limit(limit)


def _csv_rows(path: pathlib.Path, reader: Any) -> Iterator[Row]:
    columns: list[str] | None = None
    index, place = 0, ""
    while True:
        values, problem = None, ""
        place = f"{path}:{reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"is not valid CSV: {error}"
            if reader.line_num > int(place.rpartition(":")[2]):
                problem += f" (line {reader.line_num}); is a quotation mark not closed?"
        else:
            if not fields:  # A blank line.
                continue
            if any("\ud800" <= c <= "\udfff" for field in fields for c in field):
                problem = "is not UTF-8 text; save the file as UTF-8"
            elif columns is None:
                columns = [field.strip() for field in fields]
                continue
            elif len(fields) != len(columns):
                problem = f"has {len(fields)} fields where the first line names {len(columns)}"
            else:
                values = dict(zip(columns, fields, strict=True))
        yield Row(index, place, values, problem)
        index += 1
        if columns is None:
            return  # Nothing can be read without the names of the columns.


def hub_rows(source: str, split: str) -> tuple[Iterator[Row], bool]:
    """Rows of a Hugging Face data set, by the package `datasets`. Code of a data set never runs.

    Args:
      source: a directory, as `save_to_disk` writes it or with files that `load_dataset` knows, or
        an id on the hub; behind a colon, the name of one of its configurations.
      split: that is wanted.

    Returns:
      The rows, and whether they are all of the data set, as it has one split alone.

    Raises:
      UserError: the package is not installed, or the data set or its split cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{source!r} is read by the package datasets, which is not installed: "
            "pip install 'datasets>=5,<6'. JSONL and CSV need no package."
        ) from error
    path = pathlib.Path(source).expanduser()
    loaded: Any
    try:
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(str(path))
        elif path.is_dir():
            loaded = datasets.load_dataset(str(path))
        else:
            id_, _, config = source.partition(":")
            loaded = datasets.load_dataset(id_, config or None)
    except Exception as error:  # The package and those that it uses have their own each.
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"Cannot load the Hugging Face data set {source!r}: {reason} Expected a directory that "
            "save_to_disk wrote, one of Parquet, JSON or CSV files, or an id on the hub, such as "
            "openai/gsm8k:main, which needs a network or a cached copy."
        ) from error
    single = not isinstance(loaded, dict)
    parts = {"all": loaded} if single else {str(name): part for name, part in loaded.items()}
    if split not in parts and len(parts) > 1:
        raise UserError(
            f"The Hugging Face data set {source!r} has no {split} split; its splits are "
            f"{', '.join(parts)}. Expected train, validation and test, or one split alone, which "
            "is then divided."
        )
    whole = len(parts) == 1
    name = next(iter(parts)) if whole else split
    rows = (
        Row(index, f"{source} ({name}) row {index}", values, "")
        for index, values in enumerate(parts[name])
    )
    return rows, whole
