"""KPOD: keypoint-based progressive chain-of-thought distillation in JAX.

The functions of Algorithm 1, each usable on its own with plain records and arrays:

    import kpod_jax as kpod

    config = kpod.load_config("configs/quickstart.py")
    student = kpod.load_student(config.student)
    data = kpod.prepare_data(config.data, student)
    weights = kpod.learn_token_weights(config.weighting, student, data)
    trained = kpod.distill(config.distill, student, data, weights)

Modules are imported lazily, and importing the package initializes no devices.
"""

import importlib
from typing import TYPE_CHECKING, Any

from kpod_jax.version import __version__ as __version__

if TYPE_CHECKING:
    from kpod_jax.api import run as run
    from kpod_jax.baselines import TrainingSet as TrainingSet
    from kpod_jax.config.loading import load_config as load_config
    from kpod_jax.data.prepare import Data as Data
    from kpod_jax.data.prepare import prepare_data as prepare_data
    from kpod_jax.data.records import Ragged as Ragged
    from kpod_jax.data.records import Record as Record
    from kpod_jax.data.sources import load_records as load_records
    from kpod_jax.data.steps import split_steps as split_steps
    from kpod_jax.distillation import Trained as Trained
    from kpod_jax.distillation import distill as distill
    from kpod_jax.evaluation.evaluate import Evaluation as Evaluation
    from kpod_jax.evaluation.evaluate import evaluate as evaluate
    from kpod_jax.evaluation.generation import Sampling as Sampling
    from kpod_jax.evaluation.generation import generate as generate
    from kpod_jax.evaluation.significance import compare as compare
    from kpod_jax.models.export import export as export
    from kpod_jax.models.student import Student as Student
    from kpod_jax.models.student import load_student as load_student
    from kpod_jax.parallel.sharding import make_mesh as make_mesh
    from kpod_jax.report.inline import heat_map as heat_map
    from kpod_jax.schedule.difficulty import StepDifficulty as StepDifficulty
    from kpod_jax.schedule.difficulty import score_steps as score_steps
    from kpod_jax.schedule.schedule import Schedule as Schedule
    from kpod_jax.schedule.schedule import make_schedule as make_schedule
    from kpod_jax.training.loop import Hooks as Hooks
    from kpod_jax.training.loop import Recording as Recording
    from kpod_jax.utils.errors import UserError as UserError
    from kpod_jax.weighting.weigh import TokenWeights as TokenWeights
    from kpod_jax.weighting.weigh import learn_token_weights as learn_token_weights

_MODULES = {
    "api": ("run",),
    "baselines": ("TrainingSet",),
    "config.loading": ("load_config",),
    "data.prepare": ("Data", "prepare_data"),
    "data.records": ("Ragged", "Record"),
    "data.sources": ("load_records",),
    "data.steps": ("split_steps",),
    "distillation": ("Trained", "distill"),
    "evaluation.evaluate": ("Evaluation", "evaluate"),
    "evaluation.generation": ("Sampling", "generate"),
    "evaluation.significance": ("compare",),
    "models.export": ("export",),
    "models.student": ("Student", "load_student"),
    "parallel.sharding": ("make_mesh",),
    "report.inline": ("heat_map",),
    "schedule.difficulty": ("StepDifficulty", "score_steps"),
    "schedule.schedule": ("Schedule", "make_schedule"),
    "training.loop": ("Hooks", "Recording"),
    "utils.errors": ("UserError",),
    "weighting.weigh": ("TokenWeights", "learn_token_weights"),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = ["__version__", *_PLACES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
