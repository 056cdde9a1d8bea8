"""Algorithm 1 from top to bottom: rationales → weights → difficulties → schedule → student.

Each stage reads and writes files of the work directory and is skipped while its output is up to
date. This is the only place that knows their order.
"""

import dataclasses
import importlib.metadata
import json
import pathlib
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

import kpod_jax
from kpod_jax import baselines
from kpod_jax.config import defaults
from kpod_jax.config.defaults import Config
from kpod_jax.data import sources
from kpod_jax.data.published import SPLITS
from kpod_jax.parallel import processes
from kpod_jax.run import TOKENS, Run, say
from kpod_jax.stages import distill, evaluation, export, rationales, schedule, score, weigh
from kpod_jax.utils import files, plugins
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.workdir import Workdir
from kpod_jax.weighting.weigh import CHECKPOINTS as WEIGHER


@dataclasses.dataclass(frozen=True)
class Stage:
    """A step of Algorithm 1.

    Attributes:
      run: does the work and says in a few words what it did.
      keys: parts of the configuration that it depends on.
      inputs: files that it reads; "{split}" is the split of the evaluation.
      outputs: files that it writes.
      optional: outputs of other stages that it reads where the configuration needs those.
      shown: outputs of other stages that it reads where they are there.
      needed: whether the configuration asks for it at all.
      outside: files and directories elsewhere, besides the student's, that it reads.
      settings: further keys and values that it depends on.
      continues: a stale output is a training that may have taken days: it is not overwritten.
      partial: what else it leaves, such as what an interrupted run goes on from; removed where that
        was another one's.
      alone: work of the host, which one process does for all.
    """

    run: Callable[[Run], str]
    keys: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    optional: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    needed: Callable[[Config], bool] = lambda config: True
    outside: Callable[[Config], Sequence[str]] = lambda config: ()
    settings: Callable[[Config], dict[str, Any]] = lambda config: {}
    continues: bool = False
    partial: tuple[str, ...] = ()
    alone: bool = False


def _report(run: Run) -> str:
    from kpod_jax import report  # Matplotlib and SciPy take a second to import.

    path = report.write(run.workdir.path)
    return f"{len(path.read_bytes()) // 1000} kB"


def _data_files(config: Config) -> list[str]:
    data = config.data
    found = map(str, sources.input_files(data.name, data.path, data.splits))
    return [data.rationales, *found, *plugins.source_files(data.name)]


def _weighting_files(config: Config) -> list[str]:
    weights = config.weighting.weights
    return [config.weighting.answerer, weights if weights.endswith(".npz") else ""]


def _curriculum_files(config: Config) -> list[str]:
    return plugins.source_files(config.schedule.curriculum)


def _training_files(config: Config) -> list[str]:
    loss = plugins.source_files(config.distill.loss)
    return [*_curriculum_files(config), *loss, *baselines.files(config)]


def _ood_files(config: Config) -> list[str]:
    sets = [file for name in config.eval.ood for file in plugins.source_files(name)]
    return [*config.eval.ood_paths, *sets]


_RECORDS = ("records/train.jsonl", f"{TOKENS}.npy", f"{TOKENS}.json")

STAGES: dict[str, Stage] = {
    "rationales": Stage(
        rationales.run_stage,
        ("data", "student"),
        (),
        (
            *(f"records/{split}.jsonl" for split in SPLITS),
            "records/rejected.jsonl",
            f"{TOKENS}.npy",
            f"{TOKENS}.json",
        ),
        outside=_data_files,
        alone=True,
    ),
    "weigh": Stage(
        weigh.run_stage,
        ("student", "weighting", "seed"),
        (*_RECORDS, "records/validation.jsonl"),
        ("token_weights.npz", "token_spans.npz", "weighting.json"),
        needed=lambda config: config.weighting.weights != "uniform",
        outside=_weighting_files,
        partial=(WEIGHER,),
    ),
    "score": Stage(
        score.run_stage,
        ("student", "difficulty", "weighting.weights", "seed"),
        _RECORDS,
        ("step_difficulty.npz",),
        ("token_weights.npz",),
        needed=lambda config: config.schedule.curriculum != "full",
    ),
    "schedule": Stage(
        schedule.run_stage,
        (
            "student",
            "schedule",
            "distill.epochs",
            "distill.batch_size",
            "distill.max_steps",
            "distill.buckets",
            "distill.pack",
            "seed",
        ),
        (*_RECORDS, "step_difficulty.npz"),
        ("schedule.npz",),
        needed=lambda config: config.schedule.curriculum != "full",
        outside=lambda config: [config.schedule.vectors, *_curriculum_files(config)],
    ),
    "distill": Stage(
        distill.run_stage,
        ("student", "distill", "weighting.weights", "difficulty", "schedule", "seed"),
        (*_RECORDS, "records/validation.jsonl"),
        ("checkpoints/student",),
        ("token_weights.npz", "step_difficulty.npz", "schedule.npz"),
        needed=lambda config: config.distill.epochs > 0,
        outside=_training_files,
        settings=baselines.settings,
        continues=True,
        partial=(distill.SUPERVISED,),
    ),
    "eval": Stage(
        evaluation.run_stage,
        ("student", "eval", "method", "data.answer_kind", "seed"),
        ("records/{split}.jsonl",),
        ("results.json",),
        shown=(distill.SUPERVISED,),
        outside=_ood_files,
    ),
    "report": Stage(_report, (), (), ("report.html",), alone=True),
    "export": Stage(
        export.run_stage,
        ("student", "eval.checkpoint", "eval.max_new_tokens", "export", "method"),
        (),
        ("export",),
        shown=("results.json",),
    ),
}


def run(
    config: Config,
    workdir: files.PathLike,
    mode: str = "all",
    siblings: Sequence[files.PathLike] = (),
) -> pathlib.Path:
    """Runs a stage, or all of them but the export, in a work directory.

    Args:
      config: checked (`configuration_checks.check`).
      workdir: made if it is missing.
      mode: a name of STAGES, or "all".
      siblings: work directories whose outputs are taken over where they were made from the same.

    Returns:
      The work directory.

    Raises:
      UserError: something that the user can put right.
    """
    current = Run(config, Workdir(workdir, siblings))
    _write_config(current)
    for name in [name for name in STAGES if name != "export"] if mode == "all" else [mode]:
        _run_stage(current, name)
        processes.barrier(f"{name} ends")  # The first process has written what the others read.
    return current.workdir.path


def up_to_date(config: Config, workdir: files.PathLike) -> bool:
    """Whether a work directory has all that `run` would make, made from this configuration."""
    current = Run(config, Workdir(workdir))
    for name, stage in STAGES.items():
        if name in ("report", "export") or not stage.needed(config):
            continue
        if not all((current.workdir / file).exists() for file in _inputs(current, name)):
            return False
        if not current.workdir.done(name, _fingerprint(current, name), stage.outputs):
            return False
    return (current.workdir / "report.html").is_file()


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a stage is made from, as far as configurations tell before anything is made.

    Attributes:
      settings: the configuration's keys that it depends on.
      before: the recipes of the stages whose files it reads.
    """

    settings: dict[str, Any]
    before: "tuple[Recipe, ...]"


def recipes(config: Config) -> dict[str, Recipe]:
    """Recipes of the stages that runs share; where they are equal, so is what two runs make."""
    found: dict[str, Recipe] = {}
    maker: dict[str, str] = {}
    for name, stage in STAGES.items():
        if stage.continues:
            break  # Trainings, and what follows from them, are a run's own.
        if stage.needed(config):
            read = {maker[file] for file in (*stage.inputs, *stage.optional) if file in maker}
            before = tuple(found[other] for other in sorted(read))
            found[name] = Recipe(json.loads(json.dumps(_settings(config, name))), before)
            maker |= dict.fromkeys(stage.outputs, name)
    return found


def _run_stage(run: Run, name: str) -> None:
    """Runs one stage unless its output is there and up to date."""
    stage = STAGES[name]
    if not stage.needed(run.config):
        say(f"{name}: not needed for method {run.config.method}")
        return
    missing = [file for file in _inputs(run, name) if not (run.workdir / file).exists()]
    if missing:
        raise UserError(
            f"--mode={name} reads {run.workdir / missing[0]}, which is not there. Run the "
            "stages before it first, or --mode=all."
        )
    fingerprint = _fingerprint(run, name)
    if name != "report" and run.workdir.done(name, fingerprint, stage.outputs):
        say(f"{name}: up to date")
        return
    if name != "report" and run.workdir.take_over(name, fingerprint, stage.outputs):
        say(f"{name}: taken over from another run that made it from the same")
        return
    stored = run.workdir.stored(name)
    if stored is not None and stored != fingerprint:
        why = run.workdir.difference(name, fingerprint)
        if stage.continues and any((run.workdir / file).exists() for file in stage.outputs):
            raise UserError(
                f"{run.workdir.path} holds the {name} stage of another configuration: {why}. "
                "Nothing was changed. Use the configuration that it was made with, another "
                f"--workdir, or delete {run.workdir / stage.outputs[0]} to train anew."
            )
        say(f"{name}: made again: {why}")
    if stored != fingerprint:
        for part in stage.partial:
            files.remove(run.workdir / part)
    began = time.monotonic(), time.process_time()
    run.workdir.mark(name, fingerprint, complete=False)
    processes.barrier(f"{name} begins")  # What was removed is gone for all.
    message = processes.first_alone(lambda: stage.run(run)) if stage.alone else stage.run(run)
    seconds = time.monotonic() - began[0], time.process_time() - began[1]
    run.workdir.mark(name, fingerprint, seconds=seconds)
    say(f"{name}: {message} → {', '.join(stage.outputs)} ({seconds[0]:.1f} s)")


def _fingerprint(run: Run, name: str) -> dict[str, Any]:
    """What a stage's output depends on."""
    stage, settings = STAGES[name], _settings(run.config, name)
    outside = stage.outside(run.config)
    if "student" in stage.keys:
        student = run.config.student
        own = plugins.source_files(student.family)
        outside = [*outside, student.model, student.tokenizer, *own]
    if name in ("eval", "export"):
        # What was being saved when a run was killed has a longer name.
        found = (path.name for path in (run.workdir / "checkpoints/student").glob("[0-9]*"))
        settings["checkpoints"] = sorted(int(name) for name in found if name.isdecimal())
        settings["training"] = run.workdir.stored("distill")
    shown = [file for file in stage.shown if (run.workdir / file).exists()]
    return run.workdir.fingerprint(settings, [*_inputs(run, name), *shown], outside)


def _settings(config: Config, name: str) -> dict[str, Any]:
    """What a stage depends on by configuration."""
    stage = STAGES[name]
    return {
        key: value
        for key, value in defaults.flatten(config).items()
        if any(key == part or key.startswith(f"{part}.") for part in stage.keys)
    } | stage.settings(config)


def _inputs(run: Run, name: str) -> list[str]:
    """Files of the work directory that a stage reads."""
    made = {file for stage in STAGES.values() if stage.needed(run.config) for file in stage.outputs}
    stage = STAGES[name]
    inputs = [file.format(split=run.config.eval.split) for file in stage.inputs]
    return [*inputs, *(file for file in stage.optional if file in made)]


def _write_config(run: Run) -> None:
    """Writes `config.json`: the resolved configuration, versions, revision and devices."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
    value = {
        "config": run.config.to_dict(),
        "kpod_jax": kpod_jax.__version__,
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "revision": _revision(),
        "devices": [str(device) for device in jax.devices()],
    }
    files.write_json(run.workdir / "config.json", value)


def _revision() -> str | None:
    """The git revision of the package's own directory, if it is in a repository."""
    root = pathlib.Path(kpod_jax.__file__).parents[1]
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
