"""The values and figures that compare the runs on a sweep's page, as in `sections`.

A result is what `comparison.json` holds (see `kpod_jax.sweep.comparison`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kpod_jax.report import figures, summary
from kpod_jax.report.colours import SERIES
from kpod_jax.report.sections import Section

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


def failures(result: Result) -> Section:
    """The runs that failed, with their reasons, and what could not be compared."""
    found = {"failed": result["failed"], "notes": result["notes"]}
    return found if any(found.values()) else None


def comparison(result: Result) -> Section:
    """The table, one row per method and one column per question set, and accuracies as bars."""
    bars = []
    for i, column in enumerate(result["columns"]):
        if len(found := methods(result, i)) > 1:
            bars.append((column, found[0].total, figures.accuracies(found, column["name"])))
    series = {row["name"]: i % len(SERIES) for i, row in enumerate(_own_settings(result))}
    return {"result": result, "series": series, "bars": bars}


def paired_tests(result: Result) -> Section:
    """Every paired test against the reference."""
    rows = [
        (column["name"], row["name"], cell["against"])
        for i, column in enumerate(result["columns"])
        for row in result["rows"]
        if (cell := row["cells"][i]) and cell["against"]
    ]
    found = {"reference": result["reference"], "several": len(result["columns"]) > 1, "rows": rows}
    return found if rows else None


def sensitivity(result: Result) -> Section:
    """Accuracy in the first column for the values of each setting that is varied on its own."""
    cells: dict[str, dict[float, Mapping[str, Any]]] = {}
    for row in result["rows"]:
        changed, cell = list(row["settings"].items()), row["cells"][0]
        if cell and len(changed) == 1 and isinstance(changed[0][1], int | float):
            cells.setdefault(changed[0][0], {})[float(changed[0][1])] = cell
    base = next(row for row in result["rows"] if row["name"] == result["reference"])["cells"][0]
    drawn = []
    for key, found in cells.items():
        at = float(result["base"][key])
        found |= {at: base} if base else {}
        x = np.asarray(sorted(found))
        mean = np.asarray([found[value]["mean"] for value in x])
        spread = np.asarray([found[value]["spread"] or 0.0 for value in x])
        drawn.append((key, at, figures.sensitivity(key, x, mean, spread, at)))
    return {"drawn": drawn} if drawn else None
