r"""Token weights of a run by kind of word: the paper's Figure 2, as a table.

    python -m benchmarks.words --run=DIR             # prints the table
    python -m benchmarks.words --run=DIR --write     # and updates docs/token_weighting.md

DIR is the work directory of a run with learned token weights. The last column is the probability
that a word of the kind has a higher weight than an ordinary word.
"""

import collections
import re

import numpy as np
from absl import app, flags
from sklearn.metrics import roc_auc_score

from benchmarks import tables
from kpod_jax.report.heatmap import words
from kpod_jax.report.run import Run, load
from kpod_jax.utils.errors import UserError

_NOT_NAMES = {"I", "A", "Since", "So", "If", "Each", "Then", "Therefore", "The", "There", "Thus"}
# In the order of the paper's figure, highest first.
_KINDS = {
    "number": r"\d.*",
    "operator": r"[-+*/×÷x−]",
    "$, %": r"[$%]",
    "=": r"=",
    "word that does arithmetic": (
        r"twice|double|triple|half|third|quarter|times|total|sum|plus|minus|add|adding|added|more|"
        r"less|fewer|each|every|per|altogether|subtract\w*|multipl\w*|divid\w*|remaining|left"
    ),
    "name": "",
    "can, say, says, said, fit, got": r"can|says?|said|fit|got",
    "ordinary word": r"\w.*",
    "punctuation": r".*",
}
HEADER = [
    "| kind of word | words | mean weight | above an ordinary word |",
    "| --- | --- | --- | --- |",
]


def by_kind(run: Run) -> dict[str, list[float]]:
    """Groups the weights of a run's words by kind.

    A name is a word that is capitalized within a sentence; one at the start of a sentence is
    recognized by its other occurrences.
    """
    if run.weights is None or run.spans is None:
        raise UserError(f"{run.directory} has no learned token weights. Run --mode=weigh first.")
    occurrences = []
    for i, record in enumerate(run.records):
        text = record.rationale
        for word in words(text, run.spans[i], run.weights[i]):
            starts = re.search(r"(^|[.!?\n])\s*$", text[: word.start]) is not None
            occurrences.append((text[word.start : word.end], word.weight, starts))
    inside = collections.Counter(text for text, _, starts in occurrences if not starts)
    names = {text for text in inside if text[0].isupper() and text.isalpha()} - _NOT_NAMES
    kinds: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    for text, weight, _ in occurrences:
        kind = next(
            kind
            for kind, pattern in _KINDS.items()
            if (text in names if kind == "name" else re.fullmatch(pattern, text.lower()))
        )
        kinds[kind].append(weight)
    return kinds


def table(run: Run) -> list[str]:
    """Returns the lines of the table."""
    kinds = by_kind(run)
    plain = kinds["ordinary word"]
    rows = []
    for kind, weights in kinds.items():
        if not weights:
            continue
        above = "-"
        if weights is not plain and plain:
            labels = [1] * len(weights) + [0] * len(plain)
            above = f"{roc_auc_score(labels, [*weights, *plain]):.2f}"
        rows.append(f"| {kind} | {len(weights)} | {np.mean(weights):.2f} | {above} |")
    return HEADER + rows


def main(argv: list[str]) -> None:
    """Prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument: {argv[1]}")
    try:
        rows = table(load(str(tables.RUN.value)))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    print("\n".join(rows))
    if tables.WRITE.value:
        tables.put("docs/token_weighting.md", "words", rows)


if __name__ == "__main__":
    flags.mark_flag_as_required("run")
    app.run(main)
