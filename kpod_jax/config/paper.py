"""The KPOD paper as data: its settings, sensitivity ranges and results.

Source: Feng et al., ICML 2024 (arXiv 2405.16064), section 4 and Tables 1 to 3. Accuracies are in
percent; methods are named as in `defaults.METHODS`, data sets as in `data.name`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from kpod_jax.config.defaults import Config

# Settings shared by all students, by configuration key. Those the paper leaves open are absent.
SETTINGS: dict[str, Any] = {
    "data.splits": "paper",
    "data.step_separator": ".",
    "teacher.model": "GPT-3.5-Turbo",
    "teacher.style": "zero_shot",
    "teacher.prompt": "Q: {question} A: Let's think step by step.",
    "student.prompt": "Q: {question} A: Let's think step by step.",
    "student.answer_template": "Therefore, the answer is {answer}.",
    "weighting.answerer": "google/flan-t5-large",
    "weighting.alpha": 0.5,
    "weighting.prefixes": "all",
    "weighting.estimator": "straight_through",  # Or soft: it only says "Gumbel-Softmax".
    "weighting.fit": "same",
    "schedule.phase_steps": 0,
    "schedule.p": 0.5,
    "schedule.initial_fraction": 0.3,
    "schedule.beta": 12.0,
    "schedule.clusters": 5,
    "schedule.ramp_fraction": 0.5,
    "schedule.solver": "ftgp",
    "schedule.vectors": "GloVe",
    "distill.step_start_weight": "learned",
    "distill.weight_context": 0,
    "distill.rescale_weights": "none",
    "distill.optimizer": "adam",
    "distill.decay": "constant",
    "distill.batch_size": 4,
}
# Keys of `weighting` that `weighting.preset=paper` sets. The answerer is trained jointly from the
# start, and whatever weights that gives are used.
_MASK_LEARNING: dict[str, Any] = {
    "estimator": "straight_through",
    "prefixes": "all",
    "encoding": "bidirectional",
    "exploration": 0.0,
    "fit": "same",
    "fit_unmasked_steps": 0,
    "fit_masked_steps": 0,
    "eval_every": 0,
    "min_gap": -float("inf"),
    "allow_failed": True,
}
_T5 = {"distill.learning_rate": 5e-5, "distill.input_steps": "encoder"}

# Ranges within which accuracy on GSM8K changes by at most a few points.
SENSITIVITY: dict[str, tuple[float, float]] = {
    "weighting.alpha": (0.3, 0.9),
    "schedule.beta": (10.0, 16.0),
    "schedule.p": (0.5, 2.0),
    "schedule.clusters": (3, 9),
    "schedule.initial_fraction": (0.1, 0.4),
}


def mask_learning(weighting: Config) -> Config:
    """Returns the section `weighting` with its preset applied, locked.

    With the preset "paper", the answerer's joint learning rate is `fit_learning_rate`, unless
    `joint_learning_rate` is set.
    """
    if not weighting.preset:
        return weighting
    result = weighting.copy_and_resolve_references()
    result.update(_MASK_LEARNING)
    result.joint_learning_rate = weighting.joint_learning_rate or weighting.fit_learning_rate
    return result.lock()


@dataclasses.dataclass(frozen=True)
class Student:
    """A student of the paper.

    Attributes:
      name: name in the paper's tables.
      settings: student-specific settings, by configuration key.
      epochs: epochs by data set.
      table_1: accuracies of Table 1 by method, then by data set.
    """

    name: str
    settings: Mapping[str, Any]
    epochs: Mapping[str, int]
    table_1: Mapping[str, Mapping[str, float]]


DATA = {"gsm8k": "GSM8K", "asdiv": "ASDiv", "svamp": "SVAMP", "commonsense_qa": "CommonsenseQA"}


def _table(text: str) -> dict[str, dict[str, float]]:
    """Parses lines of a method and its accuracies on DATA."""
    rows = (line.split() for line in text.strip().splitlines())
    return {name: dict(zip(DATA, map(float, values), strict=True)) for name, *values in rows}


# By the last part of the model's id on the Hugging Face hub.
STUDENTS = {
    "llama-7b": Student(
        "LLaMA-7B",
        {"student.lora.rank": 64, "distill.learning_rate": 1e-5},
        {"gsm8k": 20, "commonsense_qa": 20, "asdiv": 40, "svamp": 40},
        _table("""
            none           11.00 40.20 32.80 33.90
            scotd          38.54 63.38 62.67 71.33
            specialized_kd 39.15 64.01 63.33 72.32
            scott          40.97 62.74 61.33 74.45
            mcc_kd         41.58 65.76 64.67 76.41
            kpod           46.74 71.02 68.67 77.89
        """),
    ),
    "flan-t5-xl": Student(
        "FlanT5-XL",
        {"student.lora.rank": 128, **_T5},
        dict.fromkeys(DATA, 100),
        _table("""
            none           13.50 20.70 17.70 72.70
            scotd          21.85 25.16 26.67 79.61
            specialized_kd 23.22 28.03 25.33 81.16
            scott          21.09 25.48 24.67 83.62
            mcc_kd         24.28 31.35 30.00 82.88
            kpod           25.19 33.76 34.67 88.04
        """),
    ),
    "flan-t5-large": Student(
        "FlanT5-Large",
        _T5,
        dict.fromkeys(DATA, 100),
        _table("""
            none            6.90 10.10  6.80 67.60
            scotd          19.42 20.06 19.33 76.58
            specialized_kd 20.03 23.25 20.67 77.23
            scott          18.21 21.66 18.67 77.48
            mcc_kd         18.36 23.89 21.33 78.13
            kpod           22.46 27.39 25.33 81.41
        """),
    ),
}

# Table 2: ablations, LLaMA-7B on GSM8K.
TABLE_2 = {
    "kpod": 46.74,
    "without_significance": 42.64,
    "without_significance_in_difficulty": 44.01,
    "without_progression": 43.25,
    "without_diversity": 44.16,
    "acl": 43.55,
    "spl": 42.94,
    "icl": 43.85,
}

# Table 3: LLaMA-7B trained on GSM8K, tested on other data sets.
TABLE_3 = {
    "scotd": {"asdiv": 55.09, "svamp": 45.33},
    "kpod": {"asdiv": 57.96, "svamp": 47.33},
}


def student(model: str) -> Student | None:
    """Returns the paper's student with this `student.model`, matched by the name's last part."""
    return STUDENTS.get(pathlib.PurePosixPath(model.lower()).name)


def settings(model: str, data: str) -> dict[str, Any]:
    """Returns the paper's settings, including the student's if the paper has this student."""
    match = student(model)
    if match is None:
        return dict(SETTINGS)
    epochs = {"distill.epochs": match.epochs[data]} if data in match.epochs else {}
    return SETTINGS | dict(match.settings) | epochs


def accuracy(model: str, data: str, method: str, tested: str) -> float | None:
    """Returns the paper's accuracy in percent, or None if it reports none.

    Args:
      model: `student.model`.
      data: data set of the training.
      method: a key of METHODS.
      tested: data set of the questions.
    """
    match = student(model)
    if match is None:
        return None
    if data == tested:
        value = match.table_1.get(method, {}).get(data)
        if value is None and (match.name, data) == ("LLaMA-7B", "gsm8k"):
            return TABLE_2.get(method)
        return value
    if (match.name, data) == ("LLaMA-7B", "gsm8k"):
        return TABLE_3.get(method, {}).get(tested)
    return None


def differs(ours: object, theirs: object) -> bool:
    """Returns whether a value differs from the paper's; names are compared by their last part."""
    if isinstance(theirs, str):
        return theirs.lower().rpartition("/")[2] not in str(ours).lower()
    return ours != theirs
