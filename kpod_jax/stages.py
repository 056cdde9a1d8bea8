"""The inputs and outputs of each pipeline stage."""

import pathlib
from collections.abc import Sequence
from typing import Any

from kpod_jax import baselines
from kpod_jax.config.defaults import Config, get_config
from kpod_jax.data import prepare, sources
from kpod_jax.data.prepare import Data
from kpod_jax.distillation import CHECKPOINTS, SUPERVISED_FILE, Trained
from kpod_jax.evaluation.evaluate import Results
from kpod_jax.schedule.difficulty import StepDifficulty
from kpod_jax.schedule.schedule import Schedule
from kpod_jax.training import checkpoints
from kpod_jax.utils import plugins
from kpod_jax.utils.stage_cache import Stage
from kpod_jax.utils.workdir import Workdir
from kpod_jax.weighting import weigh
from kpod_jax.weighting.weigh import TokenWeights


def _student_files(config: Config) -> list[str]:
    student = config.student
    return [student.model, student.tokenizer, *plugins.source_files(student.family)]


def _data_files(config: Config) -> list[str]:
    data = config.data
    inputs = map(str, sources.input_files(data.name, data.path, data.splits))
    return [data.rationales, *inputs, *plugins.source_files(data.name), *_student_files(config)]


def _weighting_files(config: Config) -> list[str]:
    weights = config.weighting.weights
    custom = [weights] if weights.endswith(".npz") else plugins.source_files(weights)
    models = [config.weighting.answerer, config.weighting.reference]
    return [*models, *custom, *_student_files(config)]


def _schedule_files(config: Config) -> list[str]:
    curriculum = plugins.source_files(config.schedule.curriculum)
    return [config.schedule.vectors, *curriculum, *_student_files(config)]


def _training_files(config: Config) -> list[str]:
    names = [config.schedule.curriculum, config.distill.loss]
    plugin_files = [file for name in names for file in plugins.source_files(name)]
    return [*plugin_files, *baselines.files(config), *_student_files(config)]


def _evaluation_files(config: Config) -> list[str]:
    sets = [file for name in config.eval.ood for file in plugins.source_files(name)]
    judge = plugins.source_files(config.data.answer_kind)
    return [*config.eval.ood_paths, *sets, *judge, *_student_files(config)]


def _checkpoints(config: Config, workdir: Workdir | None) -> dict[str, Any]:
    """Returns the settings, besides keys and files, of the stages after the training."""
    assert workdir is not None
    steps = checkpoints.steps_in(workdir / CHECKPOINTS)
    return {"checkpoints": steps, "training": workdir.stored("distill")}


def _remake_checkpoints(root: pathlib.Path, missing: Sequence[str]) -> str:
    """Returns what to do if the training would go on from a later checkpoint than a missing one."""
    paths = map(pathlib.PurePosixPath, missing)
    lost = [int(path.parent.name) for path in paths if path.is_relative_to(CHECKPOINTS)]
    directory = root / CHECKPOINTS
    if not lost or min(lost) > max(checkpoints.steps_in(directory), default=0):
        return ""
    return checkpoints.how_to_remake(directory, min(lost))


def _trained(config: Config) -> tuple[str, ...]:
    """Returns the training if the checkpoint to read is chosen among all that it kept."""
    return () if str(config.eval.checkpoint).isdecimal() else ("distill",)


_RECORDS = ("records/train.jsonl", f"{prepare.TOKENS}.npy", f"{prepare.TOKENS}.json")
# What does not change a training that ends: adding it resumes one that diverged.
_DISTILL = [f"distill.{key}" for key in get_config().distill if key != "skip_nonfinite"]
_LENGTH = [
    f"distill.{key}" for key in ("epochs", "batch_size", "max_steps", "buckets", "pack_length")
]

STAGES: dict[str, Stage] = {
    "rationales": Stage(
        about="reading the data set",
        keys=("data", "student"),
        outputs=prepare.OUTPUTS,
        load=Data.load,
        external=_data_files,
        host=True,
    ),
    "weigh": Stage(
        about="learning the token weights",
        keys=("student", "weighting", "seed"),
        inputs=(*_RECORDS, "records/validation.jsonl"),
        outputs=TokenWeights.OUTPUTS,
        load=TokenWeights.load,
        needed=lambda config: config.weighting.weights != "uniform",
        external=_weighting_files,
        partial=(weigh.CHECKPOINTS,),
    ),
    "score": Stage(
        about="scoring the difficulty of the steps",
        keys=("student", "difficulty", "weighting.weights", "seed"),
        inputs=_RECORDS,
        inputs_if_needed=("token_weights.npz",),
        outputs=StepDifficulty.OUTPUTS,
        load=StepDifficulty.load,
        needed=lambda config: config.schedule.curriculum != "full",
        external=_student_files,
    ),
    "schedule": Stage(
        about="computing the schedule",
        keys=("student", "schedule", *_LENGTH, "seed"),
        inputs=(*_RECORDS, "step_difficulty.npz"),
        outputs=Schedule.OUTPUTS,
        load=Schedule.load,
        needed=lambda config: config.schedule.curriculum != "full",
        external=_schedule_files,
    ),
    "distill": Stage(
        about="training the student",
        keys=("student", *_DISTILL, "weighting.weights", "difficulty", "schedule", "seed"),
        inputs=(*_RECORDS, "records/validation.jsonl"),
        inputs_if_needed=("token_weights.npz", "step_difficulty.npz", "schedule.npz"),
        outputs=Trained.OUTPUTS,
        needed=lambda config: config.distill.epochs > 0,
        external=_training_files,
        settings=lambda config, workdir: baselines.settings(config),
        remedy=_remake_checkpoints,
        training=True,
        partial=(SUPERVISED_FILE,),
        also=(f"{CHECKPOINTS}/[0-9]*/checksums.json", SUPERVISED_FILE, "records/left_out.jsonl"),
    ),
    "eval": Stage(
        about="evaluating the student",
        keys=("student", "eval", "method", "data.answer_kind", "seed"),
        inputs=("records/{split}.jsonl",),
        inputs_if_present=(SUPERVISED_FILE,),
        reads=_trained,
        outputs=Results.OUTPUTS,
        also=("predictions/*.jsonl", "records/*_test.jsonl", "records/*_test_rejected.jsonl"),
        external=_evaluation_files,
        settings=_checkpoints,
    ),
    "report": Stage(
        about="writing the report", keys=(), outputs=("report.html",), host=True, always=True
    ),
    "export": Stage(
        about="exporting the student",
        keys=("student", "eval.checkpoint", "eval.max_new_tokens", "export", "method"),
        inputs_if_present=("results.json",),
        reads=_trained,
        outputs=("export",),
        external=_student_files,
        settings=_checkpoints,
    ),
}
