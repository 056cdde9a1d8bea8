"""Finds the files of each split in a folder, and divides a data set that lacks splits."""

import hashlib
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from kpod_jax.data.published import SPLITS, tenth_of
from kpod_jax.data.tables import stem_of, suffix_of
from kpod_jax.utils.errors import UserError

ALL = "all"  # A data set without splits.
_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {alias: split for split, aliases in _ALIASES.items() for alias in aliases}
# Files that describe a data set, or that a run has written.
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"}
# Where repositories of the Hugging Face hub have their files.
_SUBFOLDERS = ("data", "default", "main")


class Part(NamedTuple):
    """Files of one split.

    Attributes:
      stem: prefix of the ids of records that have none.
      files: the files, in order.
    """

    stem: str
    files: tuple[pathlib.Path, ...]


def find(folder: pathlib.Path, preferred: str = ".jsonl") -> dict[str, Part]:
    """Finds the splits of a folder by the names of its files or of folders in it.

    Splits may have their other usual names, such as `dev`, and several numbered files. If the
    folder has no data files, its subfolder `data`, `default` or `main` is read, or the only one
    that has some.

    Args:
      folder: the folder.
      preferred: suffix of the files to take where a split has files of several formats.

    Returns:
      The parts by split; a single ALL if no name tells a split; nothing if there are no data files.

    Raises:
      UserError: it is not clear which files are meant.
    """
    found = _in_folder(folder, preferred)
    if found:
        return found
    inner = [path for path in sorted(folder.iterdir()) if _is_visible(path) and path.is_dir()]
    parts = {path.name: found for path in inner if (found := _in_folder(path, preferred))}
    for name in _SUBFOLDERS:
        if name in parts:
            return parts[name]
    if len(parts) > 1:
        raise UserError(
            f"{folder} has data in several folders: {', '.join(parts)}. Set --config.data.path to "
            "one of them."
        )
    return next(iter(parts.values()), {})


def split_of_name(name: str) -> str | None:
    """Returns the split that a name of a file or split tells, or None."""
    words = re.split(r"[^a-z]+", name.lower())
    splits = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    return splits.pop() if len(splits) == 1 else None


def canonical(names: Iterable[str], where: str) -> dict[str, str]:
    """Returns which of the names of a data set's splits is its train, validation and test split.

    Raises:
      UserError: two names tell the same split.
    """
    names = list(names)
    result = {name: name for name in names if name in SPLITS}
    for name in names:
        split = split_of_name(name)
        if split is None or result.get(split) in SPLITS:
            continue
        if split in result:
            raise UserError(f"{where} has two {split} splits: {result[split]} and {name}.")
        result[split] = name
    return result


def division(split: str, parts: Iterable[str], whole: bool) -> tuple[str, tuple[str, ...]]:
    """Returns which part of a data set to read for a split, and what to divide it into.

    Args:
      split: the split.
      parts: the data set's own splits.
      whole: whether a single part is divided, whatever its name.

    Raises:
      UserError: the split can neither be read nor held out of train.
    """
    parts = list(parts)
    if parts == [ALL] or (whole and len(parts) == 1):
        return parts[0], SPLITS
    missing = tuple(name for name in SPLITS if name not in parts)
    if split in parts and split != "train":
        return split, (split,)
    if "train" in parts:
        return "train", ("train", *missing)
    raise UserError(
        f"The data set has no {split} split, only {' and '.join(parts)}. Expected train, "
        "validation and test, or train alone, which is then divided."
    )


def divider(questions: Iterable[str | None], splits: Sequence[str]) -> Callable[[str | None], str]:
    """Divides records by the hashes of their questions, the same on every machine.

    Of all tenths of the questions one each is for validation and test, if they are in `splits`, and
    the others are for train. Where there are too few questions to fill a split so, it gets those
    with the lowest hashes.

    Args:
      questions: the questions, read until every split has some; None for broken records, which
        count as train.
      splits: "train" and those to hold out; or a single one, which all records are in.

    Returns:
      A function from a record's question to its split.
    """
    if len(splits) == 1:
        return lambda question: splits[0]

    def by_hash(question: str) -> str:
        split = {8: "validation", 9: "test"}.get(tenth_of(question), "train")
        return split if split in splits else "train"

    split_of: dict[str, str] = {}
    missing = set(splits[1:])
    for question in filter(None, questions):
        split_of[question] = by_hash(question)
        missing.discard(split_of[question])
        if not missing:
            return lambda question: by_hash(question) if question else "train"
    for split in splits[1:]:
        train = [question for question in split_of if split_of[question] == "train"]
        if split in missing and len(train) > 1:
            for question in sorted(train, key=_hash)[: max(1, len(split_of) // 10)]:
                split_of[question] = split
    return lambda question: split_of[question] if question else "train"


def _hash(question: str) -> bytes:
    return hashlib.sha256(question.encode()).digest()


def _in_folder(folder: pathlib.Path, preferred: str) -> dict[str, Part]:
    files: dict[str, list[pathlib.Path]] = {}
    for path in sorted(folder.iterdir(), key=_natural) if folder.is_dir() else ():
        if not _is_visible(path):
            continue
        split = split_of_name(stem_of(path))
        if path.is_dir() and split is not None:
            inner = sorted(path.iterdir(), key=_natural)
            files.setdefault(split, []).extend(file for file in inner if _is_data(file))
        elif _is_data(path):
            files.setdefault(split or "", []).append(path)
    unnamed = files.pop("", [])
    parts = {split: _part(split, files[split], preferred) for split in SPLITS if files.get(split)}
    if not parts and unnamed:
        return {ALL: _part(ALL, unnamed, preferred)}
    return parts


def _part(split: str, files: list[pathlib.Path], preferred: str) -> Part:
    """Returns the file with the split's own name, else numbered files that belong together."""
    suffix = preferred if any(suffix_of(file) == preferred for file in files) else ""
    files = [file for file in files if suffix_of(file) == (suffix or suffix_of(files[0]))]
    if exact := [file for file in files if stem_of(file).lower() == split]:
        files = exact[:1]
    series: Mapping[str, pathlib.Path] = {re.sub(r"\d+", "#", stem_of(f)): f for f in files}
    if len(series) > 1:
        names = ", ".join(file.name for file in series.values())
        what = "any of the splits" if split == ALL else f"the {split} split"
        raise UserError(
            f"{files[0].parent} has several files that could be {what}: {names}. Set "
            "--config.data.path to one of them, or name the files train, validation and test."
        )
    for file in files:
        if (count := re.search(r"-of-0*(\d+)$", stem_of(file))) and int(count[1]) != len(files):
            raise UserError(
                f"{file.parent} has {len(files)} of the {count[1]} files of which {file.name} is "
                "one. Complete them."
            )
    return Part(
        stem_of(files[0]) if len(files) == 1 and "-of-" not in files[0].name else split,
        tuple(files),
    )


def _natural(path: pathlib.Path) -> list[str]:
    """Sorts part-2 before part-10."""
    return [
        text.rjust(12, "0") if text.isdigit() else text for text in re.split(r"(\d+)", path.name)
    ]


def _is_visible(path: pathlib.Path) -> bool:
    return not path.name.startswith((".", "_"))


def _is_data(path: pathlib.Path) -> bool:
    return bool(suffix_of(path)) and path.name not in _NOT_DATA and path.is_file()
