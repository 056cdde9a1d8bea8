"""The reference model of `weighting.weights=excess_loss`: `weighting.reference`, or fit here.

In the second case two copies of the student are fit, each on one half of the training set. Each is
the reference for the other half, whose examples it cannot have memorized.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh

from kpod_jax.config.defaults import Config, get_config
from kpod_jax.config.loading import section
from kpod_jax.data.batches import BatchSource, Layout
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.models.student import Student, load_student
from kpod_jax.parallel import sharding
from kpod_jax.training import loop, trackers
from kpod_jax.training.loop import Hooks, Objective, Recording
from kpod_jax.utils.errors import UserError


def load(name: str, student: Student) -> Student:
    """Loads a reference model with its own tokenizer; it reads the student's prompt."""
    changes: dict[str, Any] = {
        "model": name,
        "tokenizer": "",
        "init": "pretrained",
        "lora": {"rank": 0},
    }
    return load_student(section("student", student.settings, changes), student.seed)


def read(model: Student, tokenized: TokenizedSet) -> TokenizedSet:
    """Returns the examples in the tokens of the reference model.

    Raises:
      UserError: its rationale tokens are not those of the student.
    """
    theirs, _ = model.tokenize(tokenized.records)
    spans, others = tokenized.rationale_char_spans, theirs.rationale_char_spans
    same = np.array_equal(spans.offsets, others.offsets)
    if not (same and np.array_equal(spans.values, others.values)):
        raise UserError(
            f"weighting.reference={model.model!r} has another tokenizer: its rationale tokens are "
            "not those of the student. Use a model with the student's tokenizer, such as the "
            "export/ of a run, or leave weighting.reference empty."
        )
    return theirs


def halves(count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits `count` examples at random; returns (first, second) and (second, first) half."""
    order = np.random.default_rng(seed).permutation(count)
    first, second = np.sort(order[: count // 2]), np.sort(order[count // 2 :])
    return [(first, second), (second, first)]


def fit_halves(
    student: Student, train: TokenizedSet, options: Config, mesh: Mesh, workdir: pathlib.Path
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields each half of the examples with the student's parameters after a fit on the other half.

    Args:
      student: the model.
      train: the training examples.
      options: `weighting` of the configuration.
      mesh: mesh of the devices.
      workdir: folder for checkpoints.

    Raises:
      UserError: there are fewer than two examples, or the training diverged.
    """
    if len(train) < 2:
        raise UserError(
            "weighting.weights='excess_loss' without weighting.reference fits the student on one "
            f"half of the training records; expected at least 2 records, got {len(train)}."
        )
    changes = {
        "epochs": options.reference_steps,  # An epoch has at least one step.
        "max_steps": options.reference_steps,
        "batch_size": options.batch_size,
        "learning_rate": options.fit_learning_rate,
        "decay": "linear",
        "max_to_keep": 1,
        "validate_every": 0,
    }
    config = section("distill", get_config().distill, changes)
    for number, (fit_on, half) in enumerate(halves(len(train), student.seed)):
        examples, _ = student.tokenize([train.records[i] for i in fit_on])
        layout = Layout(
            options.batch_size,
            student.seed,
            student.tokenizer.pad_token_id,
            student.decoder_start(student.prompt),
            host=sharding.host_part(mesh),
        )
        source = BatchSource(examples, layout)
        try:
            with trackers.use(trackers.Tracking(tensorboard=False)):
                params = loop.train(
                    config,
                    student,
                    student.load(mesh),
                    source,
                    loop.plan(config, source.steps_per_epoch),
                    objective=Objective(),
                    hooks=Hooks(),
                    recording=Recording(workdir / f"reference_{number}"),
                )
        except UserError as error:
            raise UserError(
                "The reference model of weighting.weights='excess_loss' was not fit. Its learning "
                f"rate is weighting.fit_learning_rate={options.fit_learning_rate:g}: {error}"
            ) from error
        yield half, params
