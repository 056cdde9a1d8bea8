"""The values and figures that compare runs on a sweep's page, as in `sections`.

A result is the contents of `comparison.json` (see `kpod_jax.sweep.comparison`).
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from kpod_jax.data.steps import split_steps
from kpod_jax.report import figures, summary
from kpod_jax.report import run as run_files
from kpod_jax.report.colours import SERIES
from kpod_jax.report.run import Run
from kpod_jax.report.sections import Section

Result = Mapping[str, Any]
_NAMED = 3  # Methods in the title.
_PAIRS = 6  # Questions.
_WITHOUT_RATIONALES = ("none", "answer_only", "distilling_step_by_step")


def methods(
    result: Result, column: int, curves: Mapping[str, Any] | None = None
) -> list[summary.Method]:
    """Returns the rows with unchanged settings as methods for figures.

    Args:
      result: result of the sweep.
      column: index of the column of questions.
      curves: rows of metrics.jsonl by run.
    """
    methods, metrics = [], curves or {}
    for number, row in enumerate(_unchanged_rows(result)):
        if cell := row["cells"][column]:
            methods.append(
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
    return methods


def _unchanged_rows(result: Result) -> list[Mapping[str, Any]]:
    return [row for row in result["rows"] if not row["settings"]]


def failures(result: Result) -> Section:
    """Returns the failed runs with their reasons, and what could not be compared."""
    section = {"failed": result["failed"], "notes": result["notes"]}
    return section if any(section.values()) else None


def comparison(result: Result) -> Section:
    """Returns the table, a row per method and a column per question set, and accuracy bars."""
    bars = []
    for i, column in enumerate(result["columns"]):
        if len(shown := methods(result, i)) > 1:
            bars.append((column, shown[0].total, figures.accuracies(shown, column["name"])))
    series = {row["name"]: i % len(SERIES) for i, row in enumerate(_unchanged_rows(result))}
    return {"result": result, "series": series, "bars": bars}


def title(result: Result, run: Run) -> str:
    """Returns the compared methods and the student."""
    names = [row["name"] for row in _unchanged_rows(result)][:_NAMED]
    subject = summary.title(run).partition(": ")[2]
    named = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return summary.capitalised(named) + (f": {subject}" if subject else "")


def side_by_side(result: Result, root: pathlib.Path) -> Section:
    """Returns generations of two methods for the same questions, in steps, where they differ.

    The methods are the reference and the first other one that writes rationales.
    """
    file = result["columns"][0]["file"]
    reference = next(row for row in result["rows"] if row["name"] == result["reference"])
    found: list[tuple[str, dict[str, dict[str, Any]]]] = []
    for row in (reference, *(row for row in result["rows"] if row is not reference)):
        if not (cell := row["cells"][0]) or row["method"] in _WITHOUT_RATIONALES or row["settings"]:
            continue
        split, rows = run_files.read_predictions(root / cell["seeds"][0]["run"], file)
        if split == file and len(found) < 2:
            by_id = {str(one["id"]): one for one in rows}
            found.append((summary.capitalised(row["name"]), by_id))
    if len(found) < 2:
        return None
    (_, ours), (_, theirs) = found
    pairs = []
    for key in ours.keys() & theirs.keys():
        both = [split_steps(str(rows[key]["prediction"])) for rows in (ours, theirs)]
        parted = next((i for i, (a, b) in enumerate(zip(*both, strict=False)) if a != b), None)
        if parted is not None:
            # Right and wrong answers first, then those that part late.
            same = ours[key]["correct"] == theirs[key]["correct"]
            pairs.append((same, -parted, key, both, parted))
    pairs.sort(key=lambda pair: pair[:3])
    shown = [
        {
            "id": key,
            "question": ours[key]["question"],
            "gold": ours[key]["gold"],
            "parted": parted,
            "sides": [
                {"name": name, "steps": steps, "correct": rows[key]["correct"]}
                for (name, rows), steps in zip(found, both, strict=True)
            ],
        }
        for _, _, key, both, parted in pairs[:_PAIRS]
    ]
    return {"shown": shown, "names": [name for name, _ in found]} if shown else None


def paired_tests(result: Result) -> Section:
    """Returns all paired tests against the reference."""
    rows = [
        (column["name"], row["name"], cell["against"])
        for i, column in enumerate(result["columns"])
        for row in result["rows"]
        if (cell := row["cells"][i]) and cell["against"]
    ]
    section = {
        "reference": result["reference"],
        "several": len(result["columns"]) > 1,
        "rows": rows,
    }
    return section if rows else None


def sensitivity(result: Result) -> Section:
    """Returns accuracy in the first column for the values of each setting varied alone."""
    cells: dict[str, dict[float, Mapping[str, Any]]] = {}
    for row in result["rows"]:
        changed, cell = list(row["settings"].items()), row["cells"][0]
        if cell and len(changed) == 1 and isinstance(changed[0][1], int | float):
            cells.setdefault(changed[0][0], {})[float(changed[0][1])] = cell
    base = next(row for row in result["rows"] if row["name"] == result["reference"])["cells"][0]
    drawings = []
    for key, by_value in cells.items():
        at = float(result["base"][key])
        by_value |= {at: base} if base else {}
        x = np.asarray(sorted(by_value))
        mean = np.asarray([by_value[value]["mean"] for value in x])
        spread = np.asarray([by_value[value]["spread"] or 0.0 for value in x])
        drawings.append((key, at, figures.sensitivity(key, x, mean, spread, at)))
    return {"drawn": drawings} if drawings else None
