"""Formats a comparison of runs as Markdown, with its conclusion in a sentence."""

import html
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

_LEVEL = 0.05  # Significance level for corrected p-values.
_MAX_IDS = 5  # Maximum number of ids listed in a line.


def is_significant(test: Mapping[str, Any]) -> bool:
    """Returns whether both the corrected p-value and the interval show a difference."""
    low, high = test["interval"]
    return test["p_holm"] < _LEVEL and low * high > 0


def verdict(row: Mapping[str, Any], questions: int) -> str:
    """States the conclusion of a paired comparison in one sentence.

    Args:
      row: an entry of "comparisons" in comparison.json.
      questions: number of questions that both answered.
    """
    low, high = row["interval"]
    if not is_significant(row):
        return (
            f"No significant difference between {row['a']} and {row['b']} (A minus B: "
            f"{points(row['difference'])} percentage points, 95% interval {points(low)} to "
            f"{points(high)}, p = {row['p_holm']:.2g}, {questions:,} questions); this does not "
            "show that they are equally good."
        )
    names = row["a"], row["b"]
    better, worse = names if low > 0 else names[::-1]
    smallest, largest = sorted((abs(low), abs(high)))
    subject = "these two students" if max(row["seeds"]) == 1 else "the means over seeds"
    other = "other data or other seeds" if min(row["seeds"]) == 1 else "other data"
    return (
        f"{better} is {100 * abs(row['difference']):.1f} percentage points more accurate than "
        f"{worse} (95% interval {100 * smallest:.1f} to {100 * largest:.1f}, "
        f"p = {row['p_holm']:.2g}, {questions:,} questions); this holds for {subject} on questions "
        f"of this kind, not for {other}."
    )


def markdown(result: Mapping[str, Any]) -> str:
    """Formats the contents of comparison.json as Markdown, with names and ids escaped."""
    lines = [
        f"# Comparison on {result['questions']:,} {escaped(result['split'])} questions",
        "",
        "| run | accuracy | 95% interval | correct |",
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
    intervals = "Intervals: Wilson for one run; bootstrap over seeds and questions for several."
    lines += ["", intervals, ""]
    for name, ids in result["missing"].items():
        text = f"{escaped(name)} lacks {len(ids):,} questions, which are left out: {_id_list(ids)}."
        lines += [text, ""]
    for row in result["comparisons"]:
        lines += _pair(row, len(result["comparisons"]) > 1, result["resamples"])
    return "\n".join(lines)


def _pair(row: Mapping[str, Any], several: bool, resamples: int) -> list[str]:
    low, high = (points(limit) for limit in row["interval"])
    lines = [f"## A: {escaped(row['a'])}, B: {escaped(row['b'])}", ""]
    if table := row["mcnemar"]:
        lines += [
            "| | B correct | B wrong |",
            "| --- | --- | --- |",
            f"| A correct | {table['both']:,} | {table['only_a']:,} |",
            f"| A wrong | {table['only_b']:,} | {table['neither']:,} |",
            "",
        ]
    kind = "exact McNemar test" if table else "bootstrap over seeds and questions"
    corrected = f"; {row['p_holm']:.3g} after Holm correction" if several else ""
    return [
        *lines,
        f"{escaped(row['verdict'])}",
        "",
        f"- Accuracy of A minus B: {points(row['difference'])} percentage points, 95% interval "
        f"{low} to {high} (paired bootstrap, {resamples:,} resamples).",
        f"- p = {row['p']:.3g} ({kind}){corrected}.",
        f"- A does better on {len(row['a_better']):,} questions: {_id_list(row['a_better'])}.",
        f"- B does better on {len(row['b_better']):,} questions: {_id_list(row['b_better'])}.",
        "",
    ]


def points(share: float) -> str:
    """Formats a difference of fractions as signed percentage points."""
    return f"{100 * share:+.1f}"


def _id_list(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _MAX_IDS:,} more" if len(ids) > _MAX_IDS else ""
    return (", ".join(map(escaped, ids[:_MAX_IDS])) or "none") + more


def escaped(text: str) -> str:
    """Escapes text, such as ids from files, as one line of plain Markdown text."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "\\|")
