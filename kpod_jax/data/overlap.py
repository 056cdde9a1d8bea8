"""Finds questions that occur in more than one split, which a student could simply memorize."""

import itertools
from collections.abc import Mapping, Sequence

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
    first_of: dict[str, dict[str, str]] = {}
    for split, records in splits.items():
        seen = first_of.setdefault(split, {})
        for record in records:
            seen.setdefault(normalize_question(record.question), record.id)
    result = {}
    for one, other in itertools.combinations(splits, 2):
        pairs = [
            (record.id, first_of[other][question])
            for record in splits[one]
            if (question := normalize_question(record.question)) in first_of[other]
        ]
        if pairs:
            result[one, other] = pairs
    return result


def describe(splits: Mapping[str, Sequence[Record]]) -> str:
    """Returns a line per pair of splits that share questions, with count and examples, or ""."""
    lines = []
    for (one, other), pairs in overlaps(splits).items():
        examples = ", ".join(f"{printable(a)} = {printable(b)}" for a, b in pairs[:3]) + (
            ", …" if len(pairs) > 3 else ""
        )
        lines.append(f"{len(pairs)} questions of {one} are also in {other}: {examples}")
    return "\n".join(lines)
