"""Compares the runs of a sweep, as plain values for `comparison.json`.

A row is a variant, a method or a method with changed settings, over its seeds. A column is a set of
questions: the test split of the training data set, or of another data set.
"""

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from kpod_jax.config import defaults, paper
from kpod_jax.config.defaults import Config
from kpod_jax.evaluation import results as results_file
from kpod_jax.evaluation import significance as paired
from kpod_jax.utils import config_dict
from kpod_jax.utils.errors import UserError


def compare(
    sweep: str, runs: Mapping[str, Config], root: pathlib.Path, failed: Mapping[str, str]
) -> dict[str, Any]:
    """Returns all results of a sweep.

    Args:
      sweep: the value of --sweep.
      runs: configurations of the completed runs, by name.
      root: the directory that holds the runs' directories.
      failed: reasons of the failed runs, by name.

    Returns:
      "reference", the row that the others are compared with: the first of KPOD, else the first;
      "base", its values of the keys that other rows change;
      "shown", one of its runs;
      "columns", each with its name, data sets, split and predictions file;
      "rows", each with its name, method, settings and one cell per column (None if not evaluated):
      "mean", "spread" (the sample standard deviation over seeds, None for a single one), "interval"
      (95%, from `kpod_jax.evaluation.significance.interval`; without predictions, the range
      covered by the seeds' intervals), "rationale_tokens" (supervised in training, mean over seeds;
      None if unknown for a run), "seeds", "against" (the paired test) and "paper" (the paper's
      accuracy);
      "failed"; "notes" on what could not be compared.
    """
    results = {name: results_file.read(root / name) for name in runs}
    variants = _variants(runs)
    columns = _columns(runs, results)
    rows: dict[str, dict[str, Any]] = {}
    for name, config in runs.items():
        label, settings = variants[name]
        empty = {"name": label, "method": defaults.trained_method(config), "settings": settings}
        row = rows.setdefault(label, empty | {"cells": [None] * len(columns)})
        for i, column in enumerate(columns):
            result = _result(results[name], config, column)
            if result is not None:
                cell = row["cells"][i] or {"seeds": [], "paper": _paper(config, column)}
                row["cells"][i] = cell
                cell["seeds"].append({"run": name, "seed": config.seed, **result})
    reference = next((row for row in rows.values() if row["method"] == "kpod"), None)
    reference = reference or next(iter(rows.values()))
    ordered = [reference, *(row for row in rows.values() if row is not reference)]
    notes = []
    for i, column in enumerate(columns):
        cells = [(row["name"], cell) for row in ordered if (cell := row["cells"][i])]
        for _, cell in cells:
            accuracies = [seed["accuracy"] for seed in cell["seeds"]]
            cell["mean"] = statistics.fmean(accuracies)
            cell["spread"] = statistics.stdev(accuracies) if len(accuracies) > 1 else None
            low, high = zip(*(seed["interval"] for seed in cell["seeds"]), strict=True)
            cell["interval"] = [min(low), max(high)]
            tokens = [seed["supervised_rationale_tokens"] for seed in cell["seeds"]]
            cell["rationale_tokens"] = None if None in tokens else statistics.fmean(tokens)
            cell["against"] = None
        try:
            _resample(root, column, cells, reference["name"])
        except UserError as error:
            notes.append(f"{column['name']}: no paired tests. {error}")
    return {
        "sweep": sweep,
        "reference": reference["name"],
        "base": _base(runs, variants, reference),
        "shown": next(c["seeds"][0]["run"] for c in reference["cells"] if c),
        "columns": columns,
        "rows": list(rows.values()),
        "failed": dict(failed),
        "notes": notes,
    }


def _variants(runs: Mapping[str, Config]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns the variant of each run: its name and its changed settings.

    Of the runs of a method on a data set, the first is named after the method; others also list
    the keys in which they differ from it.
    """
    first: dict[tuple[str, str], dict[str, object]] = {}
    variants = {}
    for name, config in runs.items():
        flat = config_dict.flatten(config)
        method = defaults.trained_method(config)
        base = first.setdefault((method, config.data.name), flat)
        changed = {
            key: value for key, value in flat.items() if key != "seed" and value != base[key]
        }
        label = ", ".join(
            [defaults.method_name(method), *(f"{k} = {v}" for k, v in changed.items())]
        )
        variants[name] = label, changed
    return variants


def _base(
    runs: Mapping[str, Config],
    variants: Mapping[str, tuple[str, Mapping[str, Any]]],
    reference: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the reference's values of all keys that variants change."""
    config = next(config for name, config in runs.items() if variants[name][0] == reference["name"])
    flat = config_dict.flatten(config)
    return {key: flat[key] for _, settings in variants.values() for key in settings}


def _columns(
    runs: Mapping[str, Config], results: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns the training data sets' splits, then those of other data sets, in order of runs."""
    columns: dict[tuple[str, str], dict[str, Any]] = {}
    several = len({config.data.name for config in runs.values()}) > 1
    for in_domain in (True, False):
        for name, config in runs.items():
            data, split = config.data.name, results[name]["split"]
            for tested in [data] if in_domain else results[name].get("ood", {}):
                label = paper.DATA.get(tested, tested)
                if several and not in_domain:
                    label = f"{paper.DATA.get(data, data)} → {label}"
                file = split if in_domain else f"{tested}_test"
                column = {
                    "name": label,
                    "data": data,
                    "tested": tested,
                    "split": split if in_domain else "test",
                    "file": file,
                }
                columns.setdefault((data, file), column)
    return list(columns.values())


def _result(
    result: Mapping[str, Any], config: Config, column: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns a run's results on a column's questions."""
    if config.data.name != column["data"]:
        return None
    scores = result if column["file"] == result["split"] else result["ood"].get(column["tested"])
    if scores is None:
        return None
    values = {key: scores[key] for key in ("accuracy", "correct", "total", "interval")}
    keys = ("checkpoint_step", "supervised_rationale_tokens")
    return values | {key: result.get(key) for key in keys}


def _paper(config: Config, column: Mapping[str, Any]) -> float | None:
    """Returns the paper's accuracy in [0, 1]."""
    method = defaults.trained_method(config)
    value = paper.accuracy(config.student.model, column["data"], method, column["tested"])
    return None if value is None else value / 100


def _resample(
    root: pathlib.Path,
    column: Mapping[str, Any],
    cells: Sequence[tuple[str, dict[str, Any]]],
    reference: str,
) -> None:
    """Adds the intervals and the paired tests against the reference."""
    methods = []
    for name, cell in cells:
        directories = tuple(str(root / seed["run"]) for seed in cell["seeds"])
        rows = tuple(paired.read_rows(path, column["file"]) for path in directories)
        method = paired.Method(name, directories, rows)
        cell["interval"] = paired.interval(method.correct(sorted(method.ids)))
        methods.append(method)
    if len(methods) < 2 or methods[0].name != reference:
        return
    result = paired.paired(methods, column["split"])
    for (_, cell), row in zip(cells[1:], result["comparisons"], strict=True):
        keys = ("difference", "interval", "p", "p_holm", "verdict")
        cell["against"] = {key: row[key] for key in keys}
        cell["against"]["questions"] = result["questions"]
