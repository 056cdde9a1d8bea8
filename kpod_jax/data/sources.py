"""Data sets by name: arithmetic (built in), gsm8k, and jsonl, which is a user's own."""

import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

from kpod_jax.data import gsm8k, jsonl
from kpod_jax.data.records import Record, Rejected, check_bad_share
from kpod_jax.data.steps import split_steps
from kpod_jax.errors import UserError

NAMES = ("arithmetic", "gsm8k", "jsonl")
_SPLITS = ("train", "validation", "test")


def load_records(
    name: str,
    split: str,
    *,
    path: str = "",
    splits: gsm8k.Splits = "paper",
    rationales: str = "",
    cache_dir: str = "",
    separator: str = "",
    limit: int = 0,
    seed: int = 0,
    max_bad_share: float = 0.01,
) -> tuple[list[Record], list[Rejected]]:
    """Loads one split of a data set.

    Args:
      name: one of NAMES.
      split: "train", "validation" or "test".
      path: where the data set's own files lie. gsm8k: the folder of train.jsonl and test.jsonl;
        empty downloads them. jsonl: a folder with train.jsonl, validation.jsonl and test.jsonl, or
        one file, whose questions are divided 8 : 1 : 1 by their hashes.
      splits: of gsm8k: "paper", or "official", which has no validation split.
      rationales: a teacher's JSONL file for gsm8k's train split; empty: the data set's own
        solutions.
      cache_dir: where prepared TFDS files go; empty: TFDS_DATA_DIR or ~/tensorflow_datasets.
      separator: that ends a step; empty: see `split_steps`. The built-in task knows its steps.
      limit: the first so many records only; 0 is all. The built-in task makes as many as are asked.
      seed: of the built-in task.
      max_bad_share: of the split's records that may be broken.

    Returns:
      The records, in the order of their source, and those that cannot be used: broken lines and,
      for a teacher's file, the questions that it has no good rationale for.

    Raises:
      UserError: an unknown name or split, files that are missing or unreadable, no records, or too
        many broken ones; the message names the first.
    """
    if name not in NAMES:
        raise UserError(f"Unknown data set {name!r}; expected one of {', '.join(NAMES)}.")
    if limit < 0:
        raise UserError(f"A limit of {limit} records is not possible; expected 0 (all) or more.")
    known = gsm8k.SPLITS.get(splits, ()) if name == "gsm8k" else _SPLITS
    if split not in known:
        raise UserError(
            f"The data set {name} has no split {split!r} (data.splits={splits!r}); expected one of "
            f"{', '.join(known)}."
        )
    if rationales and name != "gsm8k":
        raise UserError(
            f"data.rationales={rationales!r} is for gsm8k; the data set {name} has its rationales. "
            "Set it to nothing."
        )
    if name == "arithmetic":
        return _load_arithmetic(split, cache_dir, limit, seed), []
    if name == "jsonl":
        records, rejected = _load_jsonl(split, path, separator)
        broken = rejected
    else:
        records, rejected, broken = _load_gsm8k(
            split, path, splits, rationales, cache_dir, separator
        )
    check_bad_share(broken, len(records) + len(rejected), max_bad_share)
    if not records:
        raise UserError(
            f"The {split} split of {name} has no records{f' in {path}' if path else ''}. Expected "
            "at least one."
        )
    return records[: limit or None], rejected


def _load_arithmetic(split: str, cache_dir: str, limit: int, seed: int) -> list[Record]:
    # TFDS takes a second to import, and a user's own file does without it.
    from kpod_jax.data import builders

    sizes = dict(builders.ARITHMETIC_SIZES)
    sizes[split] = max(limit, sizes[split])
    config = builders.ArithmeticConfig.of(sizes, seed)
    builder = builders.prepared(builders.KpodArithmetic, config, cache_dir)
    records = []
    for row in _rows(builder, split, limit):
        keypoints = tuple((int(start), int(end)) for start, end in row["keypoints"])
        records.append(
            Record(
                id=row["id"],
                question=row["question"],
                steps=tuple(step.decode() for step in row["steps"]),
                answer=row["answer"],
                keypoints=keypoints,
                hardness=tuple(map(float, row["hardness"])),
            )
        )
    return records


def _load_gsm8k(
    split: str,
    path: str,
    splits: gsm8k.Splits,
    rationales: str,
    cache_dir: str,
    separator: str,
) -> tuple[list[Record], list[Rejected], list[Rejected]]:
    """Records, all that are rejected, and the broken ones among these."""
    from kpod_jax.data import builders

    config = builders.Gsm8kConfig.of(splits, path)
    builder = builders.prepared(builders.KpodGsm8k, config, cache_dir)
    rows = {row["id"]: row for row in _rows(builder, split)}
    broken = builder.rejected(split)
    absent: list[Rejected] = []
    if rationales and split == "train":
        line_of = {int(id_.rpartition("-")[2]): id_ for id_ in rows}
        gold = {line: (rows[i]["question"], rows[i]["answer"]) for line, i in line_of.items()}
        found, problems = gsm8k.read_teacher(pathlib.Path(rationales), gold)
        # A row of the teacher's counts as broken, its question as without a rationale.
        broken += [Rejected(f"{rationales}:{n}", reason) for n, reason in problems.items()]
        for line, id_ in line_of.items():
            if line not in found:
                absent.append(Rejected(id_, f"{rationales} has no usable rationale for it"))
        rows = {
            id_: rows[id_] | {"rationale": found[n]} for n, id_ in line_of.items() if n in found
        }
    records = []
    for row in rows.values():
        if split == "train" and not row["rationale"]:
            broken.append(Rejected(row["id"], "its rationale is empty"))
        else:
            records.append(
                Record(
                    row["id"],
                    row["question"],
                    split_steps(row["rationale"], separator),
                    row["answer"],
                )
            )
    return records, broken + absent, broken


def _rows(builder: Any, split: str, limit: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of a prepared split, texts decoded."""
    source = builder.as_data_source(split)
    for row in source.__getitems__(range(min(limit or len(source), len(source)))):
        yield {k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()}


def _load_jsonl(split: str, path: str, separator: str) -> tuple[list[Record], list[Rejected]]:
    source = pathlib.Path(path).expanduser()
    whole = source.is_file()
    file = source if whole else source / f"{split}.jsonl"
    if not path or not file.is_file():
        raise UserError(
            f"There is no {file if path else 'data.path'} to read the {split} split from. Set "
            "--config.data.path to a folder with train.jsonl, validation.jsonl and test.jsonl, or "
            'to one .jsonl file; a line is {"question", "rationale", "answer"[, "id"]}.'
        )
    records: list[Record] = []
    rejected: list[Rejected] = []
    line_of_id: dict[str, int] = {}
    for number, row, problem in jsonl.read_rows(file):
        # Broken lines of a whole file are the train split's.
        part = "train"
        id_ = default_id = f"{file.stem}-{number - 1}"
        try:
            if row is None:
                raise ValueError(problem)
            question = jsonl.text_column(row, "question")
            part = _part_of(question) if whole else split
            answer = jsonl.text_column(row, "answer")
            # A test set needs no rationales.
            rationale = jsonl.text_column(row, "rationale", required=part == "train")
            id_ = jsonl.text_column(row, "id", required=False) or default_id
            if id_ in line_of_id:
                raise ValueError(f"has the id {id_!r} of line {line_of_id[id_]}")
            line_of_id[id_] = number
            if part == split:
                records.append(Record(id_, question, split_steps(rationale, separator), answer))
        except ValueError as error:
            if not whole or part == split:
                rejected.append(Rejected(id_, f"{file}:{number} {error}"))
    return records, rejected


def _part_of(question: str) -> str:
    """The split that a question of an undivided file belongs to."""
    tenth = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 10
    return "train" if tenth < 8 else "validation" if tenth == 8 else "test"
