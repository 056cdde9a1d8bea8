"""A comparison of runs as Markdown, with a sentence on what it allows to say."""

import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

_LEVEL = 0.05  # Below it, a corrected p-value counts as showing a difference.
_FEW = 5  # Ids that a line names.


def is_significant(test: Mapping[str, Any]) -> bool:
    """Whether a paired test shows a difference: by its corrected p-value and by its interval."""
    low, high = test["interval"]
    return test["p_holm"] < _LEVEL and low * high > 0


def verdict(row: Mapping[str, Any], questions: int) -> str:
    """What the numbers of a pair allow to say, in one sentence.

    Args:
      row: an entry of "comparisons" in comparison.json.
      questions: how many both answered.
    """
    low, high = row["interval"]
    if not is_significant(row):
        return (
            f"No difference between {row['a']} and {row['b']} is shown (A minus B: "
            f"{points(row['difference'])} percentage points, 95 % interval {points(low)} to "
            f"{points(high)}, p = {row['p_holm']:.2g}, {questions:,} questions), and neither is "
            "it shown that they are equally good."
        )
    names = row["a"], row["b"]
    better, worse = names if low > 0 else names[::-1]
    least, most = sorted((abs(low), abs(high)))
    whom = "of these two students" if max(row["seeds"]) == 1 else "of the means over seeds"
    other = "other data or other seeds" if min(row["seeds"]) == 1 else "other data"
    return (
        f"{better} answers {100 * abs(row['difference']):.1f} percentage points more of the "
        f"questions correctly than {worse} (95 % interval {100 * least:.1f} to {100 * most:.1f}, "
        f"p = {row['p_holm']:.2g}, {questions:,} questions); this is shown {whom} on questions of "
        f"this kind, not of {other}."
    )


def markdown(result: Mapping[str, Any]) -> str:
    """All of comparison.json for a reader; names and ids cannot bring markup of their own."""
    lines = [
        f"# Comparison on {result['questions']:,} {escaped(result['split'])} questions",
        "",
        "| run | accuracy | 95 % interval | correct |",
        "| --- | --- | --- | --- |",
    ]
    for run in result["runs"]:
        rows = [(run["name"], run)]
        if len(run["seeds"]) > 1:
            rows += [(f"- {pathlib.Path(seed['directory']).name}", seed) for seed in run["seeds"]]
        for name, row in rows:
            low, high = row["interval"]
            count = f"{row['correct']:,}" if "correct" in row else f"mean of {len(run['seeds'])}"
            lines.append(
                f"| {escaped(name)} | {row['accuracy']:.1%} | {low:.1%} to {high:.1%} | {count} |"
            )
    intervals = "Intervals: Wilson's of one run, bootstrap over seeds and questions of several."
    lines += ["", intervals, ""]
    for name, ids in result["missing"].items():
        lines += [f"{escaped(name)} lacks {len(ids):,} questions, left out: {_some(ids)}.", ""]
    for row in result["comparisons"]:
        lines += _pair(row, len(result["comparisons"]) > 1, result["resamples"])
    return "\n".join(lines)


def _pair(row: Mapping[str, Any], several: bool, resamples: int) -> list[str]:
    low, high = (points(limit) for limit in row["interval"])
    lines = [f"## A: {escaped(row['a'])}, B: {escaped(row['b'])}", ""]
    if table := row["mcnemar"]:
        lines += [
            "| | B right | B wrong |",
            "| --- | --- | --- |",
            f"| A right | {table['both']:,} | {table['only_a']:,} |",
            f"| A wrong | {table['only_b']:,} | {table['neither']:,} |",
            "",
        ]
    kind = "McNemar's test, exact" if table else "bootstrap over seeds and questions"
    corrected = f"; {row['p_holm']:.3g} after Holm's correction" if several else ""
    return [
        *lines,
        f"{escaped(row['verdict'])}",
        "",
        f"- Accuracy of A minus B: {points(row['difference'])} percentage points, 95 % interval "
        f"{low} to {high} (paired bootstrap, {resamples:,} resamples).",
        f"- p = {row['p']:.3g} ({kind}){corrected}.",
        f"- A does better on {len(row['a_better']):,} questions: {_some(row['a_better'])}.",
        f"- B does better on {len(row['b_better']):,} questions: {_some(row['b_better'])}.",
        "",
    ]


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.1f}"


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _FEW:,} more" if len(ids) > _FEW else ""
    return (", ".join(map(escaped, ids[:_FEW])) or "none") + more


def escaped(text: str) -> str:
    """One line that Markdown takes for text, whatever a file's ids are."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "\\|")
