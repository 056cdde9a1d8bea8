"""Reads and checks the files of a work directory, the report's only input.

Letters: N training records, T phases.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from kpod_jax.data import jsonl
from kpod_jax.data.records import Ragged, Record, read_records
from kpod_jax.evaluation import results as results_file
from kpod_jax.schedule import curricula
from kpod_jax.utils import environment, files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.workdir import Workdir
from kpod_jax.weighting import summary


@dataclasses.dataclass(frozen=True)
class Run:
    """The files of one work directory; missing ones are None or empty.

    Attributes:
      directory: the work directory.
      config: resolved configuration, versions, devices.
      records: training records.
      weights: w_j of every rationale token, one slice per record.
      spans: [*, 2] characters of each of these tokens in the rationale.
      difficulty: d_k of every step, in nats (Eq. 8), one slice per record.
      schedule: start_steps [T, N], remaining and optionally target [T], clusters [N].
      weighting: final state of the training of the token weights.
      metrics: events of the run, one per row.
      predictions: evaluated questions, one per row.
      evaluated_records: record of each evaluated question, by id.
      generations_before: the student's generations before distillation, by question id.
      results: accuracy with its interval.
      seconds: wall-clock time of all stages that ran here.
    """

    directory: pathlib.Path
    config: dict[str, Any] | None = None
    records: tuple[Record, ...] = ()
    weights: Ragged | None = None
    spans: Ragged | None = None
    difficulty: Ragged | None = None
    schedule: dict[str, np.ndarray] | None = None
    weighting: dict[str, Any] | None = None
    metrics: tuple[dict[str, Any], ...] = ()
    predictions: tuple[dict[str, Any], ...] = ()
    evaluated_records: dict[str, Record] = dataclasses.field(default_factory=dict)
    generations_before: dict[str, str] = dataclasses.field(default_factory=dict)
    results: dict[str, Any] | None = None
    seconds: float = 0.0


def load(workdir: files.PathLike) -> Run:
    """Reads the files that exist.

    Raises:
      UserError: `workdir` is not a directory, a file is damaged, or files belong to different runs.
    """
    root = files.as_path(workdir)
    if not root.is_dir():
        raise UserError(f"{root} is not a directory. Pass the --workdir of a run.")
    records = _read_records(root / "records" / "train.jsonl")
    results = results_file.read(root) if (root / "results.json").exists() else None
    split, predictions = read_predictions(root, (results or {}).get("split"))
    judged = _read_records(root / "records" / f"{split}.jsonl") if split else ()
    schedule = _optional(files.read_npz, root / "schedule.npz", "schedule")
    difficulty = _optional(_read_ragged, root / "step_difficulty.npz", "score")
    # A schedule chosen online is only known after training.
    online = _optional(files.read_npz, root / "start_steps.npz")
    if schedule is not None and online is not None and difficulty is not None:
        schedule |= online
        if schedule["start_steps"].shape[1] == len(difficulty):
            schedule["remaining"] = curricula.remaining(difficulty, schedule["start_steps"])
    weights = _optional(_read_ragged, root / "token_weights.npz", "weigh")
    if weights is not None and np.unique(weights.values).size < 2:
        weights = None  # Uniform weights, not learned: nothing to show.
    run = Run(
        directory=root,
        config=_optional(environment.read_config, root / "config.json"),
        records=records,
        weights=weights,
        spans=_optional(_read_ragged, root / "token_spans.npz", "weigh"),
        difficulty=difficulty,
        schedule=schedule,
        weighting=summary.read(root) if (root / "weighting.json").exists() else None,
        metrics=read_jsonl(root / "metrics.jsonl") if (root / "metrics.jsonl").exists() else (),
        predictions=predictions,
        evaluated_records={record.id: record for record in judged},
        results=results,
        seconds=Workdir.seconds(root),
    )
    _check(run)
    return run


def read_jsonl(
    path: files.PathLike, advice: str = "Delete this line."
) -> tuple[dict[str, Any], ...]:
    """Reads one JSON object per line, dropping a last line truncated by an interrupted run.

    Args:
      path: the file.
      advice: what to do about a damaged line.

    Raises:
      UserError: the file cannot be read, or another line is not a JSON object.
    """
    lines = list(jsonl.read_rows(path))
    if lines and lines[-1][1] is None and not files.as_path(path).read_bytes().endswith(b"\n"):
        del lines[-1]
    for number, row, problem in lines:
        if row is None:
            raise UserError(f"{path}:{number} {problem}. {advice}")
    return tuple(row for _, row, _ in lines if row is not None)


def _optional(read: Any, path: pathlib.Path, *options: str) -> Any:
    return read(path, *options) if path.exists() else None


def _read_records(path: pathlib.Path) -> tuple[Record, ...]:
    return tuple(read_records(path)) if path.exists() else ()


def _read_ragged(path: pathlib.Path, stage: str) -> Ragged:
    arrays = files.read_npz(path, stage, ("values", "offsets"))
    ragged = Ragged(arrays["values"], arrays["offsets"])
    if not np.all(np.isfinite(ragged.values)):
        raise UserError(f"{path} has NaN or infinite values. {files.remedy(stage)}")
    return ragged


def read_predictions(
    root: pathlib.Path, split: str | None
) -> tuple[str | None, tuple[dict[str, Any], ...]]:
    """Returns a split's name and predictions: `split`, else test, validation or any other."""
    available = sorted(path.stem for path in (root / "predictions").glob("*.jsonl"))
    for name in (split, "test", "validation", *available):
        if name in available:
            path = root / "predictions" / f"{name}.jsonl"
            return name, read_jsonl(path, files.remedy("eval"))
    return None, ()


def _check(run: Run) -> None:
    """Checks that all files belong to the same run, so the report is not silently wrong."""
    count = len(run.records)
    if run.weights is not None and count:
        _check_count(run, "token_weights.npz", len(run.weights), count, "weigh")
    if run.spans is not None and run.weights is not None:
        same = np.array_equal(run.spans.offsets, run.weights.offsets)
        if not same or run.spans.values.shape[1:] != (2,):
            raise UserError(
                f"token_spans.npz and token_weights.npz in {run.directory} do not have the same "
                "tokens. Run --mode=weigh again."
            )
    if run.difficulty is not None and count:
        _check_count(run, "step_difficulty.npz", len(run.difficulty), count, "score")
        steps = [len(record.steps) for record in run.records]
        wrong = np.flatnonzero(run.difficulty.lengths != steps)
        if wrong.size:
            raise UserError(
                f"step_difficulty.npz in {run.directory} has {run.difficulty.lengths[wrong[0]]} "
                f"steps for record {run.records[wrong[0]].id}, expected {steps[wrong[0]]}. Run "
                "--mode=score again."
            )
    if run.schedule is not None:
        missing = {"start_steps", "remaining", "clusters"} - run.schedule.keys()
        if missing:
            raise UserError(
                f"schedule.npz in {run.directory} lacks {', '.join(sorted(missing))}. "
                + files.remedy("schedule")
            )
        if count:
            _check_count(
                run, "schedule.npz", run.schedule["start_steps"].shape[1], count, "schedule"
            )


def _check_count(run: Run, name: str, actual: int, expected: int, mode: str) -> None:
    if actual != expected:
        raise UserError(
            f"{name} in {run.directory} has {actual} examples, but records/train.jsonl has "
            f"{expected}: they belong to different runs. Run --mode={mode} again."
        )
