"""What a work directory holds, read and checked once: the report's only input.

Letters: N training records, T phases.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from kpod_jax.data import jsonl
from kpod_jax.data.records import Ragged, Record, read_records
from kpod_jax.schedule import curricula
from kpod_jax.utils import environment, files
from kpod_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Run:
    """The files of one work directory; what is not there is None or empty.

    Attributes:
      directory: the work directory.
      config: resolved configuration, versions, devices.
      records: the training records.
      weights: w_j of every rationale token, one slice a record.
      spans: [*, 2] characters of the rationale of each of these tokens.
      difficulty: d_k of every step, in nats (Eq. 8), one slice a record.
      schedule: start_steps [T, N], remaining and perhaps target [T], clusters [N].
      weighting: how the training of the token weights ended.
      metrics: one event of the run a row.
      predictions: one evaluated question a row.
      judged: the record of each evaluated question, by id.
      before: what the student generated before distillation, by the question's id.
      results: accuracy with its interval.
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
    judged: dict[str, Record] = dataclasses.field(default_factory=dict)
    before: dict[str, str] = dataclasses.field(default_factory=dict)
    results: dict[str, Any] | None = None


def load(workdir: files.PathLike) -> Run:
    """Reads what is there.

    Raises:
      UserError: `workdir` is no directory, a file is damaged, or files do not belong together.
    """
    root = files.as_path(workdir)
    if not root.is_dir():
        raise UserError(f"{root} is not a directory. Give the --workdir of a run.")
    records = _read_records(root / "records" / "train.jsonl")
    results = _optional(files.read_json, root / "results.json")
    split, predictions = read_predictions(root, (results or {}).get("split"))
    judged = _read_records(root / "records" / f"{split}.jsonl") if split else ()
    schedule = _optional(files.read_npz, root / "schedule.npz")
    difficulty = _optional(_read_ragged, root / "step_difficulty.npz")
    # The schedule of a curriculum that follows the student is known after training alone.
    followed = _optional(files.read_npz, root / "start_steps.npz")
    if schedule is not None and followed is not None and difficulty is not None:
        schedule |= followed
        if schedule["start_steps"].shape[1] == len(difficulty):
            schedule["remaining"] = curricula.remaining(difficulty, schedule["start_steps"])
    weights = _optional(_read_ragged, root / "token_weights.npz")
    if weights is not None and np.unique(weights.values).size < 2:
        weights = None  # Uniform by configuration: nothing was learned, so nothing is to be seen.
    run = Run(
        directory=root,
        config=_optional(environment.read_config, root / "config.json"),
        records=records,
        weights=weights,
        spans=_optional(_read_ragged, root / "token_spans.npz"),
        difficulty=difficulty,
        schedule=schedule,
        weighting=_optional(files.read_json, root / "weighting.json"),
        metrics=read_jsonl(root / "metrics.jsonl") if (root / "metrics.jsonl").exists() else (),
        predictions=predictions,
        judged={record.id: record for record in judged},
        results=results,
    )
    _check(run)
    return run


def read_jsonl(path: files.PathLike) -> tuple[dict[str, Any], ...]:
    """Reads one JSON object a line; a last line that a killed run cut short is left out.

    Raises:
      UserError: the file cannot be read, or another line is not a JSON object.
    """
    lines = list(jsonl.read_rows(path))
    if lines and lines[-1][1] is None and not files.as_path(path).read_bytes().endswith(b"\n"):
        del lines[-1]
    for number, row, problem in lines:
        if row is None:
            raise UserError(f"{path}:{number} {problem}.")
    return tuple(row for _, row, _ in lines if row is not None)


def _optional(read: Any, path: pathlib.Path) -> Any:
    return read(path) if path.exists() else None


def _read_records(path: pathlib.Path) -> tuple[Record, ...]:
    return tuple(read_records(path)) if path.exists() else ()


def _read_ragged(path: pathlib.Path) -> Ragged:
    arrays = files.read_npz(path)
    if not {"values", "offsets"} <= arrays.keys():
        raise UserError(f"{path} holds {sorted(arrays)}, expected values and offsets. Delete it.")
    ragged = Ragged(arrays["values"], arrays["offsets"])
    if not np.all(np.isfinite(ragged.values)):
        raise UserError(f"{path} holds values that are NaN or infinite. Delete it to remake it.")
    return ragged


def read_predictions(
    root: pathlib.Path, split: str | None
) -> tuple[str | None, tuple[dict[str, Any], ...]]:
    """Predictions of `split` with its name, else of the first of test, validation and others."""
    there = sorted(path.stem for path in (root / "predictions").glob("*.jsonl"))
    for name in (split, "test", "validation", *there):
        if name in there:
            return name, read_jsonl(root / "predictions" / f"{name}.jsonl")
    return None, ()


def _check(run: Run) -> None:
    """Files of different runs would make a report that looks right and is wrong."""
    count = len(run.records)
    if run.weights is not None and count:
        _same(run, "token_weights.npz", len(run.weights), count, "weigh")
    if run.spans is not None and run.weights is not None:
        same = np.array_equal(run.spans.offsets, run.weights.offsets)
        if not same or run.spans.values.shape[1:] != (2,):
            raise UserError(
                f"token_spans.npz and token_weights.npz of {run.directory} are not of the same "
                "tokens. Run --mode=weigh again."
            )
    if run.difficulty is not None and count:
        _same(run, "step_difficulty.npz", len(run.difficulty), count, "score")
        steps = [len(record.steps) for record in run.records]
        wrong = np.flatnonzero(run.difficulty.lengths != steps)
        if wrong.size:
            raise UserError(
                f"step_difficulty.npz of {run.directory} has {run.difficulty.lengths[wrong[0]]} "
                f"steps for record {run.records[wrong[0]].id}, expected {steps[wrong[0]]}. Run "
                "--mode=score again."
            )
    if run.schedule is not None:
        missing = {"start_steps", "remaining", "clusters"} - run.schedule.keys()
        if missing:
            raise UserError(
                f"schedule.npz of {run.directory} lacks {', '.join(sorted(missing))}. Run "
                "--mode=schedule again."
            )
        if count:
            _same(run, "schedule.npz", run.schedule["start_steps"].shape[1], count, "schedule")


def _same(run: Run, name: str, found: int, expected: int, mode: str) -> None:
    if found != expected:
        raise UserError(
            f"{name} of {run.directory} is of {found} examples, but records/train.jsonl holds "
            f"{expected}: they are of different runs. Run --mode={mode} again."
        )
