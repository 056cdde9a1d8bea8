"""The student's training (Eq. 15), on the schedule."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from kpod_jax.data.batches import BatchSource
from kpod_jax.data.records import Ragged
from kpod_jax.data.tokens import in_rationale, step_starts
from kpod_jax.parallel import sharding
from kpod_jax.run import Run, say
from kpod_jax.schedule import curricula
from kpod_jax.schedule.following import Following
from kpod_jax.schedule.protocol import Feedback
from kpod_jax.stages.schedule import curriculum_of
from kpod_jax.stages.score import difficulty_of
from kpod_jax.training import loop, train_step
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.weighting.context import weights_by_context

SUPERVISED = "distill.json"  # The tokens that a training supervised, for the evaluation.


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
    """w_j of Eq. 15, float32, as the loss takes them; None where all are 1.

    In this order: each becomes the mean weight in its context, of `distill.weight_context` tokens;
    none is below `distill.least_weight`; with `distill.step_start_weight="answer"`
    the first token of each step has weight 1; with `distill.rescale_weights="mean"` all others are
    divided by their mean within the rationale, so that the mean of all is 1.
    """
    weights, options = run.weights(), run.config.distill
    if weights is None:
        return None
    train = run.train_set
    weights = weights_by_context(weights, train.targets, options.weight_context)
    values = np.maximum(weights.values, np.float32(options.least_weight))
    kept = np.ones(len(values), bool)
    if options.step_start_weight == "answer":
        kept = ~step_starts(train)[in_rationale(train)]
    if options.rescale_weights == "mean":
        starts = weights.offsets[:-1]
        sums = np.add.reduceat(values * kept, starts, dtype=np.float64)
        counts = np.add.reduceat(kept, starts, dtype=np.int64)
        means = np.maximum(sums, 1e-9) / np.maximum(counts, 1)
        values = values / np.repeat(means, weights.lengths)
    return Ragged(np.where(kept, values, 1).astype(np.float32), weights.offsets)


def _cut_to(source: BatchSource, rationale_tokens: int, steps: int) -> int:
    """The steps, at most so many, after which so many rationale tokens were supervised."""
    sums = np.cumsum(source.supervised_tokens(steps)[:, 0])
    return min(steps, 1 + int(np.searchsorted(sums, rationale_tokens)))


def run_stage(run: Run) -> str:
    """Trains the student on the records, token weights and schedule.

    Writes checkpoints/student, and distill.json, how many tokens were supervised: a function of
    data, schedule and steps, whatever the training was interrupted by.

    Returns:
      What was done, in a few words.

    Raises:
      UserError: what the method, the loss or the training cannot do with the configuration.
    """
    config, student, training = run.config, run.student, run.training
    for note in run.method.notes if run.method else ():
        say(f"distill: {note}")
    length = run.length

    def source_of(start_steps: Callable[[int], np.ndarray], weights: Ragged | None) -> BatchSource:
        return run.training_source(
            weights=weights,
            start_steps=start_steps,
            stage_of_step=lambda step: step // length.steps_per_stage,
            host=sharding.host_part(run.mesh),
        )

    start_steps = _start_steps(run)
    source = source_of(start_steps, loss_weights(run))
    if config.distill.equal_tokens:
        if isinstance(start_steps, Following):
            raise UserError(
                f"distill.equal_tokens=True: schedule.curriculum={config.schedule.curriculum!r} "
                "follows the student, so that its tokens are not known before training; expected "
                "a curriculum without feedback, such as kpod."
            )
        scheduled = int(source.supervised_tokens(length.total_steps)[:, 0].sum())
        start_steps = curricula.FullRationale(run.train_set.num_steps).start_steps
        source = source_of(start_steps, None)
        steps = _cut_to(source, scheduled, length.total_steps)
        length = dataclasses.replace(length, total_steps=steps)
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

    loop.train(
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
    rationale, answer = source.supervised_tokens(length.total_steps).sum(axis=0).tolist()
    found = {"supervised_rationale_tokens": rationale, "supervised_answer_tokens": answer}
    files.write_json(run.workdir / SUPERVISED, found)
    return (
        f"{_examples(run)}{length.total_steps} steps in {length.stages} stages, "
        f"{rationale:,} rationale and {answer:,} answer tokens supervised, "
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
