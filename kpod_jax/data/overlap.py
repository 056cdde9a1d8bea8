"""Finds questions that occur in more than one split, which a student could simply memorize."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from kpod_jax.data.records import Record
from kpod_jax.utils.printable import printable


def normalize_question(question: str) -> str:
    """Returns a question in lower case with single spaces."""
    return " ".join(question.casefold().split())


def overlaps(
    splits: Mapping[str, Sequence[Record]],
) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Finds records of different splits with the same question, up to whitespace and case.

    Returns:
      For each pair of splits that share questions, a pair of ids for each record of the first split
      whose question is in the second: that record's id, and the id of the first match.
    """
    hashes = {split: _hashes(records) for split, records in splits.items()}
    result = {}
    for one, other in itertools.combinations(splits, 2):
        shared = np.intersect1d(hashes[one], hashes[other])
        first_of: dict[str, str] = {}
        for i in np.flatnonzero(np.isin(hashes[other], shared)).tolist():
            record = splits[other][i]
            first_of.setdefault(normalize_question(record.question), record.id)
        # Equal hashes do not make equal questions.
        pairs = [
            (record.id, first_of[question])
            for i in np.flatnonzero(np.isin(hashes[one], shared)).tolist()
            if (question := normalize_question((record := splits[one][i]).question)) in first_of
        ]
        if pairs:
            result[one, other] = pairs
    return result


def _hashes(records: Sequence[Record]) -> np.ndarray:
    """Returns hashes of the questions, [N] int64."""
    return np.fromiter((hash(normalize_question(r.question)) for r in records), np.int64)


def describe(splits: Mapping[str, Sequence[Record]]) -> str:
    """Returns a line per pair of splits that share questions, with count and examples, or ""."""
    lines = []
    for (one, other), pairs in overlaps(splits).items():
        examples = ", ".join(f"{printable(a)} = {printable(b)}" for a, b in pairs[:3]) + (
            ", …" if len(pairs) > 3 else ""
        )
        lines.append(f"{len(pairs)} questions of {one} are also in {other}: {examples}")
    return "\n".join(lines)
