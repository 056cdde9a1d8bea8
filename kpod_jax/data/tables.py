"""Reads rows of JSONL, CSV and Hugging Face data sets with their location, past invalid rows."""

import csv
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from kpod_jax.data import jsonl
from kpod_jax.utils.errors import UserError

# Allows fields of several megabytes; Python's default limit is 128 KiB.
_MAX_FIELD = 1 << 26


class Row(NamedTuple):
    """A row of a table.

    Attributes:
      index: row number from 0; for JSONL the line number from 0.
      place: location to show to the user, such as file and line.
      values: values by column; None if the row is invalid.
      problem: reason why the row is invalid, or "".
    """

    index: int
    place: str
    values: Mapping[str, Any] | None
    problem: str


def json_lines(path: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of a JSONL file.

    Raises:
      UserError: the file cannot be read.
    """
    for number, values, problem in jsonl.read_rows(path):
        yield Row(number - 1, f"{path}:{number}", values, problem)


def csv_rows(path: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of a UTF-8 CSV file whose first line names the columns.

    Fields are quoted with `"`, which is doubled inside a field, and may contain line breaks. Files
    named *.tsv are separated by tabs.

    Raises:
      UserError: the file cannot be read.
    """
    limit = csv.field_size_limit(_MAX_FIELD)
    try:
        # Invalid bytes become surrogates, so only their row is invalid, not those after it.
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
                problem += f" (line {reader.line_num}); check for an unclosed quotation mark"
        else:
            if not fields:  # A blank line.
                continue
            if any("\ud800" <= c <= "\udfff" for field in fields for c in field):
                problem = "is not UTF-8 text; save the file as UTF-8"
            elif columns is None:
                columns = [field.strip() for field in fields]
                continue
            elif len(fields) != len(columns):
                problem = f"has {len(fields)} fields; the first line names {len(columns)}"
            else:
                values = dict(zip(columns, fields, strict=True))
        yield Row(index, place, values, problem)
        index += 1
        if columns is None:
            return  # Rows cannot be read without column names.


def hub_rows(source: str, split: str) -> tuple[Iterator[Row], bool]:
    """Returns the rows of a Hugging Face data set, loaded with the package `datasets`.

    Code of a data set is never run.

    Args:
      source: a directory written by `save_to_disk`, a directory of files that `load_dataset`
        supports, or an id on the hub, optionally with a colon and a configuration name.
      split: name of the split.

    Returns:
      The rows, and whether they are the whole data set because it has only one split.

    Raises:
      UserError: the package is not installed, or the data set or its split cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"Reading {source!r} requires the package datasets, which is not installed: "
            "pip install 'datasets>=5,<6'. JSONL and CSV files do not need it."
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
    except Exception as error:  # From the package or its dependencies.
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"Cannot load the Hugging Face data set {source!r}: {reason} Expected a directory "
            "written by save_to_disk, a directory of Parquet, JSON or CSV files, or an id on the "
            "hub, such as openai/gsm8k:main, which needs a network or a cached copy."
        ) from error
    single = not isinstance(loaded, dict)
    parts = {"all": loaded} if single else {str(name): part for name, part in loaded.items()}
    if split not in parts and len(parts) > 1:
        raise UserError(
            f"The Hugging Face data set {source!r} has no {split} split; its splits are "
            f"{', '.join(parts)}. Expected train, validation and test, or a single split, which "
            "is then divided."
        )
    whole = len(parts) == 1
    name = next(iter(parts)) if whole else split
    rows = (
        Row(index, f"{source} ({name}) row {index}", values, "")
        for index, values in enumerate(parts[name])
    )
    return rows, whole
