"""Several runs, one after the other, and their comparison: a table and one report.

Runs share what they make from the same inputs: the records, weights and difficulties of one are
taken over by the next. A run that is done is not done again.
"""

import importlib.util
import pathlib
import shutil
import statistics
import types
from collections.abc import Mapping, Sequence
from typing import Any

from kpod_jax import configuration, files, pipeline, report
from kpod_jax.configuration import Config
from kpod_jax.errors import UserError
from kpod_jax.pipeline import say


def run(sweep: str, workdir: files.PathLike) -> pathlib.Path:
    """Runs a sweep.

    Args:
      sweep: a Python file with `get_runs(argument)`, which returns configurations by name; an
        argument may follow after a colon, as in `configs/sweeps/quickstart.py:short`.
      workdir: each run's directory is made in it under the run's name.

    Returns:
      The path of the report.

    Raises:
      UserError: the sweep cannot be loaded, or a run has something that the user can put right.
    """
    root = pathlib.Path(workdir)
    path, _, argument = sweep.partition(":")
    runs = _load(path).get_runs(argument)
    for config in runs.values():
        configuration.check(config)
    for number, (name, config) in enumerate(runs.items(), 1):
        say(f"\n[{number}/{len(runs)}] {name}")
        pipeline.run(config, root / name, siblings=[root / other for other in runs])
    results = []
    for name in runs:
        result = files.read_json(root / name / "results.json")
        metrics = root / name / "metrics.jsonl"  # Nothing was trained without distillation.
        results.append(result | ({"metrics": str(metrics)} if metrics.is_file() else {}))
    files.write_json(root / "comparison.json", results)
    shown = root / _shown(runs)
    written = report.write(shown, results)
    with files.replacing(root / "report.html") as target, written.open("rb") as source:
        shutil.copyfileobj(source, target)
    say("\n" + table(results))
    say(f"\nReport: {root / 'report.html'}")
    return root / "report.html"


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """One line a method: its accuracy in percent, over seeds, as plain text."""
    lines = [f"{'method':<24}{'accuracy':>10}{'spread':>9}  of each seed"]
    for method in configuration.METHODS:
        own = [result for result in results if result["method"] == method]
        if not own:
            continue
        values = [100 * result["accuracy"] for result in own]
        spread = f"± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        each = ", ".join(f"{value:.1f}" for value in values)
        name = configuration.METHODS[method][0]
        lines.append(f"{name:<24}{statistics.mean(values):>9.1f}%{spread:>9}  {each}")
    total = results[0]["total"]
    lines.append(f"{results[0]['split']} split, {total} questions; spread: standard deviation")
    return "\n".join(lines)


def _shown(runs: Mapping[str, Config]) -> str:
    """The run whose schedule and weights the report shows: the first KPOD, else the first."""
    kpod = [name for name, config in runs.items() if config.method == "kpod"]
    return (kpod or list(runs))[0]


def _load(path: str) -> types.ModuleType:
    specification = importlib.util.spec_from_file_location("kpod_sweep", path)
    if specification is None or specification.loader is None or not pathlib.Path(path).is_file():
        raise UserError(f"--sweep={path}: no such Python file.")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    if not hasattr(module, "get_runs"):
        raise UserError(f"--sweep={path} has no function get_runs(argument).")
    return module
