"""Questions that stand in more than one split: what a student would only have to remember."""

import itertools
from collections.abc import Mapping, Sequence

from kpod_jax.data.records import Record


def normalised(question: str) -> str:
    """A question without its case and its white space."""
    return " ".join(question.casefold().split())


def overlaps(
    splits: Mapping[str, Sequence[Record]],
) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Records of two splits with the same question, up to white space and case.

    Returns:
      For each two splits that share questions, the ids of each record of the first one whose
      question is in the other, and of the first record with it there.
    """
    first_of: dict[str, dict[str, str]] = {}
    for split, records in splits.items():
        seen = first_of.setdefault(split, {})
        for record in records:
            seen.setdefault(normalised(record.question), record.id)
    result = {}
    for one, other in itertools.combinations(splits, 2):
        pairs = [
            (record.id, first_of[other][question])
            for record in splits[one]
            if (question := normalised(record.question)) in first_of[other]
        ]
        if pairs:
            result[one, other] = pairs
    return result


def describe(splits: Mapping[str, Sequence[Record]]) -> str:
    """One line for each two splits that share questions, with counts and examples; "" for none."""
    lines = []
    for (one, other), pairs in overlaps(splits).items():
        some = ", ".join(f"{a} = {b}" for a, b in pairs[:3]) + (", …" if len(pairs) > 3 else "")
        lines.append(f"{len(pairs)} questions of {one} are also in {other}: {some}")
    return "\n".join(lines)
