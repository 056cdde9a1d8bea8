"""The student's training (Eq. 15), on the schedule."""

from collections.abc import Callable
from typing import Any

import numpy as np

from kpod_jax import distill, files, sharding
from kpod_jax.run import Run
from kpod_jax.schedule import curricula
from kpod_jax.schedule.following import Following
from kpod_jax.schedule.protocol import Feedback
from kpod_jax.stages.schedule import curriculum_of
from kpod_jax.stages.score import difficulty_of


def _start_steps(run: Run) -> Callable[[int], np.ndarray]:
    """c_i by stage."""
    num_steps, name = run.train_set.num_steps, run.config.schedule.curriculum
    if name == "full":
        return curricula.FullRationale(num_steps).start_steps
    stored = files.read_npz(run.workdir / "schedule.npz")
    curriculum = curriculum_of(run, stored["clusters"])
    if curriculum.needs_feedback:
        return Following(curriculum, num_steps, run.workdir / "start_steps.npz", name)
    table = stored["start_steps"]
    return lambda stage: table[min(stage, len(table) - 1)]


def run_stage(run: Run) -> str:
    """Does it, and says in a few words what was done."""
    config, student = run.config, run.student
    start_steps = _start_steps(run)
    length = run.length
    source = run.batch_source(
        weights=run.weights(),
        start_steps=start_steps,
        stage_of_step=lambda step: step // length.steps_per_stage,
        buckets=config.distill.buckets,
        input_steps=config.distill.input_steps,
        host=sharding.host_part(run.mesh),
        pack=config.distill.pack,
    )
    # Checkpoints are chosen by it; the test split is not read before the evaluation.
    evaluator = run.evaluator(run.records("validation"))

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
        validate=evaluator.accuracy,
        begin_stage=begin_stage if isinstance(start_steps, Following) else None,
    )
    return (
        f"{length.total_steps} steps in {length.stages} stages, "
        f"batches of shapes {', '.join(f'{s}+{u}' for s, u in source.shapes)}, "
        f"{source.padding_share:.0%} padding"
    )
