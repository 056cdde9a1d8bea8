r"""Which kinds of words got the highest weights in a run: the paper's Figure 2, as a table.

    python -m benchmarks.words --run=DIR             # prints it
    python -m benchmarks.words --run=DIR --write     # and puts it into docs/token_weighting.md

DIR is the work directory of a run whose tokens are weighted. Beside the mean of each kind stands
the probability that a word of it weighs more than an ordinary word.
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
# In the order that the paper's figure has them in: highest first.
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
    """The weights of the words of each kind.

    A name is a word with a capital inside a sentence; one that begins a sentence is known by its
    other occurrences.
    """
    if run.weights is None or run.spans is None:
        raise UserError(f"{run.directory} has no learned token weights: run --mode=weigh first.")
    found = []
    for i, record in enumerate(run.records):
        text = record.rationale
        for word in words(text, run.spans[i], run.weights[i]):
            begins = re.search(r"(^|[.!?\n])\s*$", text[: word.start]) is not None
            found.append((text[word.start : word.end], word.weight, begins))
    inside = collections.Counter(text for text, _, begins in found if not begins)
    names = {text for text in inside if text[0].isupper() and text.isalpha()} - _NOT_NAMES
    kinds: dict[str, list[float]] = {kind: [] for kind in _KINDS}
    for text, weight, _ in found:
        kind = next(
            kind
            for kind, pattern in _KINDS.items()
            if (text in names if kind == "name" else re.fullmatch(pattern, text.lower()))
        )
        kinds[kind].append(weight)
    return kinds


def table(run: Run) -> list[str]:
    """The table's lines."""
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
        raise app.UsageError(f"unexpected argument: {argv[1]}")
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
