"""The sections of a sweep's report: its table, the tests behind it, curves, what failed.

A result is what `comparison.json` holds (see `kpod_jax.sweep.comparison`).
"""

import urllib.parse
from collections.abc import Mapping
from typing import Any

import numpy as np

from kpod_jax.evaluation.comparison import is_shown, points
from kpod_jax.report import figures, summary, sweep_text
from kpod_jax.report.markup import Html, figure, join, section, table, tag

Result = Mapping[str, Any]


def methods(
    result: Result, column: int, curves: Mapping[str, Any] | None = None
) -> list[summary.Method]:
    """The rows that are methods with their own settings, as figures take them.

    Args:
      result: of the sweep.
      column: which questions.
      curves: the rows of metrics.jsonl by run.
    """
    found, metrics = [], curves or {}
    for number, row in enumerate(_own_settings(result)):
        if cell := row["cells"][column]:
            found.append(
                summary.Method(
                    name=summary.capitalised(row["name"]),
                    number=number,
                    split=result["columns"][column]["split"],
                    accuracies=tuple(seed["accuracy"] for seed in cell["seeds"]),
                    mean=cell["mean"],
                    interval=tuple(cell["interval"]),
                    total=cell["seeds"][0]["total"],
                    curves=tuple(metrics[s["run"]] for s in cell["seeds"] if metrics.get(s["run"])),
                )
            )
    return found


def _own_settings(result: Result) -> list[Mapping[str, Any]]:
    return [row for row in result["rows"] if not row["settings"]]


def failures(result: Result) -> Html | None:
    """The runs that failed, with their reasons, and what could not be compared."""
    items = [
        tag("li", tag("b", tag("code", name)), " failed: ", why)
        for name, why in result["failed"].items()
    ] + [tag("li", note) for note in result["notes"]]
    return section("What is missing", tag("ul", *items, class_="missing")) if items else None


def comparison(result: Result) -> Html:
    """The table, a row a variant and a column a set of questions, and the accuracies as bars."""
    numbered = {row["name"]: i for i, row in enumerate(_own_settings(result))}
    rows = []
    for row in result["rows"]:
        dot = None
        if row["name"] in numbered:
            series = numbered[row["name"]] % len(figures.SERIES)
            dot = tag("i", class_="dot", style=f"background:var(--series-{series})")
        name = join(filter(None, [dot, row["name"]]))
        tokens = sweep_text.tokens_of(row, result["columns"])
        rows.append([name, tokens, *map(_cell, row["cells"])])
    names = [column["name"] for column in result["columns"]]
    head = ["Method", sweep_text.TOKENS.capitalize(), *names]
    caption = (
        f"{sweep_text.SPREAD.format(reference=result['reference'])} Under it the 95 % interval, "
        "of questions and, of several seeds, trainings; each seed's number leads to its report. "
        f"{sweep_text.TOKENS_MEANT}"
    )
    if sweep_text.papers(result):
        caption += f" The paper: {sweep_text.PAPERS}."
    written = tag(
        "div",
        table(head, rows, range(1, len(head)), class_="sweep"),
        tag("p", caption, class_="caption"),
    )
    drawn = "Bars: mean accuracy. Lines: 95 % interval. Dots: single seeds."
    bars = []
    for i, column in enumerate(result["columns"]):
        if len(found := methods(result, i)) > 1:
            text = f"{column['name']}: {found[0].total:,} {column['split']} questions. {drawn}"
            bars.append(figure(figures.accuracies(found, column["name"]), f"accuracy-{i}", text))
    wide = len(result["columns"]) > 1
    return section(
        "Comparison",
        tag("div", written, *([] if wide else bars), class_="grid wide-left"),
        tag("div", *bars, class_="grid") if wide and bars else None,
    )


def _cell(cell: Mapping[str, Any] | None) -> Html | str:
    """A mean with its spread; under it, its interval, the paper's, and links to runs."""
    if cell is None:
        return "–"
    mark = "*" if cell["against"] and is_shown(cell["against"]) else ""
    seeds = cell["seeds"]
    links = join(
        (tag("a", str(s["seed"]), href=f"{_path(s['run'])}/report.html") for s in seeds), ", "
    )
    label = "seed " if len(seeds) == 1 else "seeds "
    theirs = "" if cell["paper"] is None else f"paper {100 * cell['paper']:.2f}; "
    return join(
        [
            tag("b", sweep_text.accuracy(cell) + mark),
            tag("span", summary.percent(*cell["interval"]), class_="under"),
            tag("span", theirs, label, links, class_="under"),
        ]
    )


def _path(name: str) -> str:
    """A run's directory as a part of a link."""
    return urllib.parse.quote(name)


def tests(result: Result) -> Html | None:
    """Every paired test against the reference."""
    several, rows = len(result["columns"]) > 1, []
    for i, column in enumerate(result["columns"]):
        for row in result["rows"]:
            cell = row["cells"][i]
            if cell and (test := cell["against"]):
                low, high = map(points, test["interval"])
                difference = points(test["difference"])
                shown = is_shown(test)
                rows.append(
                    [
                        *([column["name"]] if several else []),
                        row["name"],
                        tag("b", difference) if shown else difference,
                        f"{low} to {high}",
                        f"{test['p']:.2g}",
                        f"{test['p_holm']:.2g}",
                        "shown" if shown else "not shown",
                    ]
                )
    if not rows:
        return None
    head = [*(["Questions"] if several else []), "Method", "Points", "95 % interval", "p", "Holm"]
    first = len(head) - 4
    text = (
        f"{result['reference']} minus each other method, in percentage points, on the same "
        "questions. Intervals are of a paired bootstrap over seeds and questions; p is McNemar's "
        "exact test for single seeds, else the bootstrap's on the means; Holm's method corrects it "
        "within a column. A difference that is not shown may still be there."
    )
    return section(
        "Paired tests", tag("p", text), table([*head, ""], rows, range(first, first + 4))
    )


def sensitivity(result: Result) -> Html | None:
    """Accuracy over the values of each setting that is changed alone, on the first column."""
    values: dict[str, list[tuple[float, Mapping[str, Any]]]] = {}
    for row in result["rows"]:
        changed, cell = list(row["settings"].items()), row["cells"][0]
        if cell and len(changed) == 1 and isinstance(changed[0][1], int | float):
            values.setdefault(changed[0][0], []).append((float(changed[0][1]), cell))
    parts = []
    base = next(row for row in result["rows"] if row["name"] == result["reference"])["cells"][0]
    for key, found in values.items():
        at = float(result["base"][key])
        cells = dict([*found, *([(at, base)] if base else [])])
        x = np.asarray(sorted(cells))
        mean = np.asarray([cells[value]["mean"] for value in sorted(cells)])
        spread = np.asarray([cells[value]["spread"] or 0.0 for value in sorted(cells)])
        drawing = figures.sensitivity(key, x, mean, spread, at)
        caption = f"Accuracy by {key}; bars are one standard deviation over seeds. Dotted: {at:g}."
        parts.append(figure(drawing, f"sensitivity-{key.replace('.', '-')}", caption))
    return section("Sensitivity", tag("div", *parts, class_="grid three")) if parts else None


def shown_run(result: Result) -> Html:
    """What the sections after this one are of."""
    name: str = result["shown"]
    link = tag("a", tag("code", name), href=f"{_path(name)}/report.html")
    return section("One run in detail", tag("p", "All that follows is of the run ", link, "."))
