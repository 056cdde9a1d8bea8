"""Algorithm 1 from top to bottom: rationales → weights → difficulties → schedule → student.

Each stage in `run` is a function of the results above it. `utils/stage_cache.py` stores its result
in the work directory and skips it while that is up to date.
"""

import dataclasses
import datetime
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from kpod_jax import baselines
from kpod_jax.cli import terminal
from kpod_jax.config.defaults import Config
from kpod_jax.data.prepare import TOKENS, Data, prepare_data
from kpod_jax.data.sources import fresh_records
from kpod_jax.distillation import (
    Trained,
    batch_source,
    check_layout,
    distill,
    read_trained,
    training_plan,
)
from kpod_jax.evaluation.evaluate import evaluate_run, make_validation
from kpod_jax.models.student import Student, load_student
from kpod_jax.parallel import processes, sharding
from kpod_jax.schedule.difficulty import score_steps
from kpod_jax.schedule.protocol import Feedback
from kpod_jax.schedule.schedule import Schedule, make_schedule, training_schedule
from kpod_jax.stages import STAGES
from kpod_jax.training import trackers
from kpod_jax.training.loop import Hooks, Recording
from kpod_jax.utils import environment, files, stage_cache
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.stage_cache import Recipe, StageCache, lazily
from kpod_jax.utils.workdir import Workdir
from kpod_jax.weighting.weigh import learn_token_weights


def run(
    config: Config,
    workdir: files.PathLike,
    mode: str = "all",
    siblings: Sequence[files.PathLike] = (),
) -> pathlib.Path:
    """Runs a stage, or all stages except the export, in a work directory.

    Args:
      config: validated configuration (`cli.checks.check`).
      workdir: work directory; created if missing.
      mode: a name in STAGES, or "all".
      siblings: work directories whose results are reused if they have the same inputs.

    Returns:
      The work directory.

    Raises:
      UserError: an error the user can fix, such as another run in the same directory.
    """
    if mode not in ("all", next(iter(STAGES))):
        check_run(workdir, mode)
    directory = Workdir(workdir, siblings)
    if mode in _READERS:
        return _run(config, directory, mode)
    with processes.locked(directory.path):
        environment.write_config(directory / "config.json", config)
        with trackers.tracking(config, directory.path):
            _run(config, directory, mode)
            if mode in ("all", "eval"):
                trackers.log_results(directory.path)
    return directory.path


# They write a page alone, so they may run beside another run, such as a training.
_READERS = ("report",)


def _run(config: Config, directory: Workdir, mode: str) -> pathlib.Path:
    """Runs a stage, or all of Algorithm 1, in a locked work directory."""
    root = directory.path
    chosen = [name for name in STAGES if name != "export"] if mode == "all" else [mode]
    mesh = lazily(sharding.make_mesh, **config.mesh)
    student = lazily(read_student, config, root, directory.siblings)
    introduction = lazily(terminal.banner, config, student, mesh, root)
    stage = StageCache(STAGES, config, directory, processes, chosen, introduction).run

    data = stage("rationales", prepare_data, config.data, student)
    weights = stage(  # Eq. 2-7
        "weigh", learn_token_weights, config.weighting, student, data, mesh,
        fresh=lazily(fresh_records, config), workdir=root,
    )  # fmt: skip
    difficulty = stage(  # Eq. 8
        "score", score_steps, config.difficulty, student, data, weights, mesh,
        bucket_rows=config.distill.batch_size,
    )  # fmt: skip
    examples = lazily(method_examples, config, student, data)
    phases = lazily(num_phases, config, student, examples)
    schedule = stage(  # Eq. 9-13
        "schedule", make_schedule, config.schedule, student, data, difficulty, phases, mesh
    )
    start_steps = lazily(
        training_schedule, config.schedule, schedule, data, difficulty, phases, root
    )
    hooks = lazily(make_hooks, config, student, data, weights, start_steps, mesh)
    stage(  # Eq. 15
        "distill", distill, config.distill, student, examples, weights, start_steps, mesh,
        hooks=hooks, recording=Recording(root, **config.monitoring),
    )  # fmt: skip
    trained = lazily(
        read_trained, config.eval.checkpoint, student, mesh, root, config.distill.epochs > 0
    )
    stage("eval", evaluate_run, config, student, trained, data, mesh)
    stage("report", write_report, root)
    stage("export", export_run, config, student, trained, root)
    return root


def check_run(workdir: files.PathLike, mode: str) -> None:
    """Raises a `UserError` if a directory holds no run, whose earlier results a stage reads."""
    root = files.as_path(workdir)
    if not (root / "config.json").is_file():
        what = "holds no run" if root.is_dir() else "does not exist"
        raise UserError(
            f"--mode={mode} reads the results of earlier stages, but --workdir={root} {what}. Pass "
            "the --workdir of a run, or use --mode=all."
        )


PROMPT = "prompt.json"


def read_student(
    config: Config, root: pathlib.Path, siblings: Sequence[files.PathLike] = ()
) -> Student:
    """Loads the student and checks that it supports the row layout of the training.

    A chat template may contain the current date. It is that of the day on which the run first
    loaded its student, or of a sibling, whose tokens may be reused; `PROMPT` keeps it.
    """
    student = load_student(config.student, config.seed)
    check_layout(config.distill, student)
    student = dataclasses.replace(student, date=prompt_date([root, *siblings]))
    value = student.prompt_json(student.prompt)
    stored = files.read_json(root / PROMPT) if (root / PROMPT).exists() else {}
    if any(stored.get(key) != value[key] for key in ("date", "prompt")):
        files.write_json(root / PROMPT, value)
    return student


def prompt_date(paths: Sequence[files.PathLike]) -> datetime.date:
    """Returns the date in the prompts of the first of some work directories that has one."""
    for path in map(files.as_path, paths):
        if (path / PROMPT).exists():
            return datetime.date.fromisoformat(files.read_json(path / PROMPT)["date"])
        tokens = path / f"{TOKENS}.json"
        if not files.is_remote(tokens) and tokens.exists():  # From before `PROMPT` was written.
            return datetime.date.fromtimestamp(tokens.stat().st_mtime)
    return datetime.date.today()


def method_examples(config: Config, student: Student, data: Data) -> baselines.TrainingSet:
    """Returns the method's training set."""
    return baselines.make_training_set(baselines.method_of(config, student), student, data)


def num_phases(config: Config, student: Student, examples: baselines.TrainingSet) -> int:
    """Returns the number of phases of the training."""
    source = batch_source(config.distill, student, examples)
    return training_plan(config.distill, source, config.schedule.phase_steps).phases


def make_hooks(
    config: Config, student: Student, data: Data, weights: Any, start_steps: Any, mesh: Any
) -> Hooks:
    """Returns hooks for validation and for the losses a curriculum needs before each phase."""

    def begin_phase(phase: int, params: Any) -> None:
        step_losses = score_steps(
            config.difficulty, student, data, weights, mesh, params=params,
            bucket_rows=config.distill.batch_size, label=f"Losses before phase {phase}",
        )  # fmt: skip
        start_steps.begin(phase, Feedback(step_losses))

    return Hooks(
        validate=make_validation(config, student, data.records("validation"), mesh),
        begin_phase=None if isinstance(start_steps, Schedule) else begin_phase,
    )


class StoredResult(NamedTuple):
    """A result that is already on disk; `message` is a one-line summary."""

    message: str

    def save(self, root: pathlib.Path) -> None:
        """Does nothing."""

    def __str__(self) -> str:
        """One-line summary."""
        return self.message


def write_report(root: pathlib.Path) -> StoredResult:
    """Writes report.html."""
    from kpod_jax import report  # Matplotlib is slow to import.

    return StoredResult(f"{len(report.write(root).read_bytes()) // 1000} kB")


def export_run(
    config: Config, student: Student, trained: Trained, root: pathlib.Path
) -> StoredResult:
    """Exports the student to export/, with its results in the model card."""
    from kpod_jax.report import exported

    return StoredResult(exported.write(config, student, trained.params, trained.step, root))


def up_to_date(config: Config, workdir: files.PathLike) -> bool:
    """Returns whether a work directory has all results of `run` for this configuration."""
    cache = StageCache(STAGES, config, Workdir(workdir), processes)
    names = [name for name in STAGES if name not in ("report", "export")]
    return all(map(cache.up_to_date, names)) and (cache.root / "report.html").is_file()


def recipes(config: Config) -> dict[str, Recipe]:
    """Returns the recipes of stages that runs can share; equal recipes give equal results."""
    return stage_cache.recipes(STAGES, config)
