"""The student's training (Eq. 15), on the schedule."""

from collections.abc import Callable
from typing import Any

import numpy as np

from kpod_jax import distill, files, sharding, train_step
from kpod_jax.data.records import Ragged
from kpod_jax.run import Run, say
from kpod_jax.schedule import curricula
from kpod_jax.schedule.following import Following
from kpod_jax.schedule.protocol import Feedback
from kpod_jax.stages.schedule import curriculum_of
from kpod_jax.stages.score import difficulty_of


def _start_steps(run: Run) -> Callable[[int], np.ndarray]:
    """c_i by stage."""
    if (given := run.training.start_steps) is not None:
        return lambda stage: given
    num_steps, name = run.train_set.num_steps, run.config.schedule.curriculum
    if name == "full":
        return curricula.FullRationale(num_steps).start_steps
    stored = files.read_npz(run.workdir / "schedule.npz")
    curriculum = curriculum_of(run, stored["clusters"])
    if curriculum.needs_feedback:
        return Following(curriculum, num_steps, run.workdir / "start_steps.npz", name)
    table = stored["start_steps"]
    return lambda stage: table[min(stage, len(table) - 1)]


def loss_weights(run: Run) -> Ragged | None:
    """w_j of Eq. 15, none below `distill.least_weight`; None where all are 1."""
    weights = run.weights()
    if weights is None:
        return None
    least = np.float32(run.config.distill.least_weight)
    return Ragged(np.maximum(weights.values, least), weights.offsets)


def run_stage(run: Run) -> str:
    """Trains the student on the records, token weights and schedule; writes checkpoints/student.

    Returns:
      What was done, in a few words.

    Raises:
      UserError: what the method, the loss or the training cannot do with the configuration.
    """
    config, student, training = run.config, run.student, run.training
    for note in run.method.notes if run.method else ():
        say(f"distill: {note}")
    start_steps = _start_steps(run)
    length = run.length
    source = run.training_source(
        weights=loss_weights(run),
        start_steps=start_steps,
        stage_of_step=lambda step: step // length.steps_per_stage,
        host=sharding.host_part(run.mesh),
    )
    # Checkpoints are chosen by it; the test split is not read before the evaluation.
    validation = run.records("validation")
    evaluator, loss_of = run.evaluator(validation), run.target_loss(validation)

    def validate(params: Any) -> dict[str, float]:
        found = {"accuracy": evaluator.accuracy(params)}
        return found if loss_of is None else found | {"token_loss": loss_of(params)}

    def begin_stage(stage: int, params: Any) -> None:
        assert isinstance(start_steps, Following)
        losses = difficulty_of(run, params, f"Losses before stage {stage}")
        start_steps.begin(stage, Feedback(losses))

    distill.train(
        student.module,
        *student.split(student.load(run.mesh)),
        source,
        start_steps,
        config.distill,
        config.watch,
        length=length,
        seed=config.seed,
        mesh=run.mesh,
        workdir=run.workdir.path,
        validate=validate,
        begin_stage=begin_stage if isinstance(start_steps, Following) else None,
        loss=train_step.loss_of(config.distill.loss, training.objective.loss),
        rows_together=2 if training.groups is not None else 1,
    )
    return (
        f"{_examples(run)}{length.total_steps} steps in {length.stages} stages, "
        f"batches of shapes {', '.join(f'{s}+{u}' for s, u in source.shapes)}, "
        f"{source.padding_share:.0%} padding"
    )


def _examples(run: Run) -> str:
    """How many examples a method made, by task, and how many do not fit the student."""
    training = run.training
    if run.method is None:
        return ""
    found = [f"{count} {task}".rstrip() for task, count in training.tasks.items()]
    if training.left_out:
        rows = [{"id": bad.id, "reason": bad.reason} for bad in training.left_out]
        files.write_jsonl(run.workdir / "records/left_out.jsonl", rows)
        found.append(f"{len(rows)} left out (records/left_out.jsonl)")
    if training.objective.note:
        found.append(training.objective.note)
    return f"examples: {', '.join(found)}; "
