"""Methods to compare KPOD with, one per module, and custom methods by import path."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from kpod_jax.baselines.answer_only import AnswerOnly
from kpod_jax.baselines.distilling_step_by_step import DistillingStepByStep
from kpod_jax.baselines.mcc_kd import MccKd
from kpod_jax.baselines.protocol import Method as Method
from kpod_jax.baselines.protocol import Setting as Setting
from kpod_jax.baselines.scott import Scott
from kpod_jax.baselines.specialized_kd import SpecializedKd
from kpod_jax.baselines.training_set import TrainingSet as TrainingSet
from kpod_jax.baselines.training_set import make_training_set as make_training_set
from kpod_jax.config.defaults import Config
from kpod_jax.data import sources
from kpod_jax.models.student import Student
from kpod_jax.utils import config_dict, plugins

METHODS: dict[str, type[Method]] = {
    "answer_only": AnswerOnly,
    "specialized_kd": SpecializedKd,
    "scott": Scott,
    "mcc_kd": MccKd,
    "mcc_kd_control": MccKd,  # The same batches; METHODS of the configuration sets λ = 0.
    "distilling_step_by_step": DistillingStepByStep,
}
# Keys of `data` that methods may use besides the records.
_DATA_KEYS = ("name", "answer_kind", "step_separator")


def class_of(name: str) -> type[Method] | None:
    """Returns the class of a method; None for methods that train on the records themselves.

    Raises:
      UserError: if a custom class cannot be imported, or is not a `protocol.Method`.
    """
    return _load_class(name) if plugins.is_path(name) else METHODS.get(name)


def method_of(config: Config, student: Student) -> Method | None:
    """Creates the method of a configuration; None if it trains on the records themselves."""
    method_class, tokenizer = class_of(config.method), student.tokenizer
    if method_class is None:
        return None

    def token_lengths(texts: Sequence[str]) -> np.ndarray:
        ids = tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
        return np.array([len(row) for row in ids], np.int64)

    return method_class(
        Setting(
            options=config.baseline.to_dict(),
            data=config.data.name,
            answer_kind=sources.answer_kind(config.data.name, config.data.answer_kind),
            step_separator=config.data.step_separator,
            prompt=config.student.prompt,
            answer_template=config.student.answer_template,
            seed=config.seed,
            token_lengths=token_lengths,
            max_question_tokens=config.student.max_question_tokens,
            tokenizer=tokenizer,
        )
    )


def prompt_of(config: Config, student: Student) -> str:
    """Returns the prompt template for evaluating the trained student, in the student's form."""
    method = method_of(config, student)
    return student.prompt if method is None else student.resolve_prompt(method.prompt)


def config_errors(config: Config) -> list[str]:
    """Returns what is wrong with a configuration for its method, one line per error."""
    method = class_of(config.method)
    if method is None:
        return []
    # The examples of a method have neither token weights nor a schedule.
    errors = [
        f"{key}={value!r}: expected {expected} with method={config.method!r}; select the method "
        f"with --config=FILE:{config.method}"
        for key, value, expected in (
            ("weighting.weights", config.weighting.weights, "uniform"),
            ("schedule.curriculum", config.schedule.curriculum, "full"),
        )
        if value != expected
    ]
    return errors + method.config_errors(config)


def settings(config: Config) -> dict[str, Any]:
    """Returns the settings, other than those of training, that a method's students depend on."""
    method = class_of(config.method)
    if method is None:
        return {}
    keys = [f"baseline.{key}" for key in method.keys] + [f"data.{key}" for key in _DATA_KEYS]
    flat = config_dict.flatten(config)
    return {"method": config.method} | {key: flat[key] for key in keys}


def files(config: Config) -> list[str]:
    """Returns the files that a method reads, including the source file of a custom method."""
    method = class_of(config.method)
    if method is None:
        return []
    return [config.baseline[key] for key in method.file_keys] + plugins.source_files(config.method)


@functools.cache
def _load_class(name: str) -> type[Method]:
    return plugins.load_subclass(name, "method", Method)
