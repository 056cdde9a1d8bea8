"""Reads rows of JSON, CSV, Parquet and Hugging Face data sets with their location."""

import csv
import functools
import itertools
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from kpod_jax.data import json_files
from kpod_jax.data.rows import Row as Row
from kpod_jax.data.text_files import MAX_TEXT, bounded_lines, not_utf8, open_text
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")

# Python's default limit is 128 KiB.
_MAX_FIELD = 2 * MAX_TEXT


json_lines = json_files.lines


def read(path: pathlib.Path, default: str = ".jsonl") -> Iterator[Row]:
    """Yields the rows of a file of any supported format, known by its suffix.

    Args:
      path: a file of SUFFIXES, the text formats also with `.gz` after it.
      default: suffix that counts for other names.

    Raises:
      UserError: the file cannot be read.
    """
    suffix = suffix_of(path) or default
    return {".csv": csv_rows, ".tsv": csv_rows, ".parquet": parquet_rows}.get(
        suffix, json_files.read
    )(path)


def suffix_of(path: pathlib.Path) -> str:
    """Returns the suffix of a file name, one of SUFFIXES, without `.gz`; "" for others."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def stem_of(path: pathlib.Path) -> str:
    """Returns a file's name without the suffix that `suffix_of` finds."""
    suffixes = suffix_of(path) + (".gz" if path.name.lower().endswith(".gz") else "")
    return path.name[: -len(suffixes)] if suffix_of(path) else path.stem


def csv_rows(path: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of a CSV file whose first line names the columns.

    Fields are quoted with `"`, which is doubled inside a field, and may contain line breaks. They
    are separated by commas, semicolons or tabs, whichever the first line has most of.

    Raises:
      UserError: the file cannot be read, or names a column twice.
    """
    limit = csv.field_size_limit(_MAX_FIELD)
    try:
        with open_text(path, newline="") as file:
            first = next((line for line in bounded_lines(file) if line.strip()), "")
        with open_text(path, newline="") as file:
            reader = csv.reader(bounded_lines(file), delimiter=_delimiter(path, first), strict=True)
            yield from _csv_rows(path, reader)
    finally:
        csv.field_size_limit(limit)


def _delimiter(path: pathlib.Path, first: str) -> str:
    if hint := re.match(r"sep=(.)\s*$", first, re.IGNORECASE):  # A line for Excel.
        return hint[1]
    plain = re.sub(r'"[^"]*+"', "", first)
    order = "\t,;" if suffix_of(path) == ".tsv" else ",;\t"
    return max(order, key=plain.count)


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
            if any(map(not_utf8, fields)):
                problem = "is not UTF-8 text; save the file as UTF-8"
            elif columns is None:
                columns = _column_names(place, fields)
                continue
            else:
                while len(fields) > len(columns) and not fields[-1].strip():
                    fields.pop()  # Excel ends lines with empty fields.
                if len(fields) != len(columns):
                    problem = f"has {len(fields)} fields; the first line names {len(columns)}"
                else:
                    values = dict(zip(columns, fields, strict=True))
        yield Row(index, place, values, problem)
        index += 1
        if columns is None:
            return  # Rows cannot be read without column names.


def _column_names(place: str, fields: list[str]) -> list[str] | None:
    """Returns the names in a first line, or None if it has none."""
    if fields[0].lower().startswith("sep="):
        return None
    columns = [field.strip().strip("\ufeff").strip() for field in fields]
    while columns and not columns[-1]:
        columns.pop()
    if repeated := next((c for c in columns if c and columns.count(c) > 1), ""):
        raise UserError(f"{place} names the column {repeated!r} twice; rename or delete one.")
    return columns or None


def parquet_rows(path: pathlib.Path) -> Iterator[Row]:
    """Yields the rows of a Parquet file, as Python values.

    Raises:
      UserError: the file cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = file.iter_batches(batch_size=1024)
            values = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for index, row in enumerate(values):
                yield Row(index, f"{path} row {index}", row, "")
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(f"Cannot read {path} as a Parquet file: {reason}.") from error


def hub_rows(source: str, split: str) -> tuple[Iterator[Row], bool]:
    """Returns the rows of one split of a Hugging Face data set; see `hub_parts`.

    Returns:
      The rows, and whether they are the whole data set because it has only one split.

    Raises:
      UserError: the data set or its split cannot be loaded.
    """
    parts = hub_parts(source)
    if split not in parts and len(parts) > 1:
        raise UserError(
            f"The Hugging Face data set {source!r} has no {split} split; its splits are "
            f"{', '.join(parts)}. Expected train, validation and test, or a single split, which "
            "is then divided."
        )
    whole = len(parts) == 1
    return parts[next(iter(parts)) if whole else split](), whole


def hub_parts(source: str) -> dict[str, Callable[[], Iterator[Row]]]:
    """Returns the splits of a Hugging Face data set, loaded with the package `datasets`.

    Code of a data set is never run.

    Args:
      source: a directory written by `save_to_disk`, a directory of files that `load_dataset`
        supports, or an id on the hub, optionally with a colon and a configuration name. Of several
        configurations, without one named "default", "main" is taken if none is given.

    Returns:
      By split, a function that yields the rows; "all" if the data set has no splits.

    Raises:
      UserError: the package is not installed, or the data set cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"Reading {source!r} requires the package datasets, which is not installed: "
            "pip install 'datasets>=5,<6'. JSON, CSV and Parquet files do not need it."
        ) from error
    path = files.expand(source)
    loaded: Any
    try:
        if is_saved(path):
            loaded = datasets.load_from_disk(str(path))
        else:
            id_, _, config = (str(path), "", "") if path.is_dir() else source.partition(":")
            try:
                loaded = datasets.load_dataset(id_, config or None)
            except ValueError as error:
                if config or "Config name is missing" not in str(error):
                    raise
                if "main" not in datasets.get_dataset_config_names(id_):
                    raise
                loaded = datasets.load_dataset(id_, "main")
    except Exception as error:  # From the package or its dependencies.
        reason = " ".join(str(error).strip().split("\n")[:2])
        raise UserError(
            f"Cannot load the Hugging Face data set {source!r}: {reason} Expected a directory "
            "written by save_to_disk, a directory of Parquet, JSON or CSV files, or an id on the "
            "hub, such as openai/gsm8k:main, which needs a network or a cached copy."
        ) from error
    parts = {str(k): v for k, v in loaded.items()} if isinstance(loaded, dict) else {"all": loaded}

    def rows(name: str) -> Iterator[Row]:
        for index, values in enumerate(parts[name]):
            yield Row(index, f"{source} ({name}) row {index}", values, "")

    return {name: functools.partial(rows, name) for name in parts}


def is_saved(path: pathlib.Path) -> bool:
    """Returns whether a directory was written by `save_to_disk`."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
