"""The student's training: the loop around the train step, its checkpoints and its metrics.

A run is a function of its configuration and data, so one that was killed goes on from its last
checkpoint to the same bits.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from absl import logging

from kpod_jax.config.defaults import Config
from kpod_jax.data.batches import BatchSource
from kpod_jax.models import layout
from kpod_jax.models.student import Student
from kpod_jax.parallel import processes, sharding
from kpod_jax.training import monitoring
from kpod_jax.training.checkpoints import Checkpoints
from kpod_jax.training.metrics import MetricsWriter, OneStepLate
from kpod_jax.training.train_step import (
    Loss,
    Params,
    cross_entropy,
    learning_rate,
    make_optimizer,
    make_train_step,
    model_flops,
    start_state,
)
from kpod_jax.utils.progress import Progress

STAGE = "distill"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a training is.

    Attributes:
      steps_per_epoch: in which every example occurs once.
      steps_per_phase: in which c_i stands still.
      total_steps: of the whole training.
    """

    steps_per_epoch: int
    steps_per_phase: int
    total_steps: int

    @property
    def phases(self) -> int:
        """Number of phases, the last perhaps cut short."""
        return -(-self.total_steps // self.steps_per_phase)

    def phase_of_step(self, step: int) -> int:
        """The phase, from 0, of a step from 0."""
        return step // self.steps_per_phase


def plan(config: Config, steps_per_epoch: int, phase_steps: int = 0) -> Plan:
    """The training's length by `distill.epochs` and `distill.max_steps`.

    Args:
      config: `distill` of the configuration.
      steps_per_epoch: batches in which every example occurs once.
      phase_steps: steps of a phase; 0: an epoch's.
    """
    total = config.epochs * steps_per_epoch
    total = min(total, config.max_steps) if config.max_steps else total
    return Plan(steps_per_epoch, phase_steps or steps_per_epoch, total)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a step minimises.

    Attributes:
      loss: see `make_train_step`.
      group_size: so many neighbouring rows are never divided between micro-batches.
    """

    loss: Loss = cross_entropy
    group_size: int = 1


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What is called while a student is trained.

    Attributes:
      validate: from parameters to figures of the validation split, which become the metrics
        "validation_accuracy" and so on; the accuracy picks the best checkpoint. None: there are
        none, and the last checkpoint is the best.
      begin_phase: is told each phase and its first parameters before any of its batches is made.
        None where the schedule is known beforehand: batches are then made ahead across phases.
    """

    validate: Callable[[Params], Mapping[str, float]] | None = None
    begin_phase: Callable[[int, Params], None] | None = None


@dataclasses.dataclass(frozen=True)
class Recording:
    """Where a training is written down, and what watches it.

    Attributes:
      workdir: of the run.
      hang_seconds: see `monitoring.Watchdog`.
      profile_steps: that the profiler traces.
    """

    workdir: pathlib.Path
    hang_seconds: float = 0.0
    profile_steps: int = 0


def train(
    config: Config,
    student: Student,
    params: Params,
    source: BatchSource,
    length: Plan,
    *,
    objective: Objective,
    hooks: Hooks,
    recording: Recording,
) -> Params:
    """Trains from `params`, or resumes from the work directory's latest checkpoint.

    Every checkpoint goes to `checkpoints/student`, the metrics to `metrics.jsonl`. After the last
    step, and every `validate_every` epochs, the student is validated.

    Args:
      config: `distill` of the configuration.
      student: model without parameters; its seed is that of dropout.
      params: where training starts, on a mesh; donated. Checkpoints hold those that are trained.
      source: of batches.
      length: of the training, from `plan`.
      objective: what is minimised.
      hooks: what is called.
      recording: where it is written down.

    Returns:
      The parameters after the last step.
    """
    mesh = jax.tree.leaves(params)[0].sharding.mesh
    module, workdir = student.module, recording.workdir
    validate, begin_phase = hooks.validate, hooks.begin_phase
    params, frozen = student.split(params)
    optimizer = make_optimizer(config, length.total_steps)
    train_step = make_train_step(
        module,
        optimizer,
        learning_rate(config, length.total_steps),
        micro_batches=config.micro_batches,
        dropout=config.dropout,
        loss=objective.loss,
        group_size=objective.group_size,
    )
    flops_of = model_flops(module, params, frozen)
    key = jax.random.key(student.seed)
    with (
        sharding.use(mesh),
        Checkpoints(
            workdir / "checkpoints" / "student",
            max_to_keep=config.max_to_keep,
            best_metric="accuracy",
        ) as checkpoints,
    ):
        state = start_state(params, optimizer)
        first, iterator_state = 0, None
        if checkpoints.latest_step() is not None:
            restored = checkpoints.restore_like(state)
            state, first = restored.state, restored.step
            iterator_state = restored.extra["iterator"]
            logging.info("goes on from the checkpoint of step %d", first)
        if first >= length.total_steps:
            return layout.combine(state["params"], frozen)
        per_phase, total = length.steps_per_phase, length.total_steps
        # Where phases follow the student, none of a phase's batches may be made before it begins.
        first_batch = first // per_phase * per_phase if begin_phase else 0
        last_batch = min(total, first_batch + per_phase) if begin_phase else total
        iterator = source.iterate(first_batch, last_batch)
        if iterator_state is not None:
            iterator.set_state(iterator_state)
        late, window, sizes = OneStepLate(), monitoring.Window(), {}
        tracer = monitoring.Tracer(workdir / "profile", first + 1, recording.profile_steps)
        with (
            MetricsWriter(workdir, STAGE, restored_step=first if first else None) as writer,
            Progress(total, "Distilling", initial=first) as progress,
            processes.listening() as is_told_to_end,
            monitoring.Watchdog(recording.hang_seconds, "distill") as watchdog,
        ):

            def record(done: tuple[int, dict[str, float]] | None) -> None:
                """Writes a step's metrics, `log_every` steps apart."""
                if done is None:
                    return
                step, values = done
                watchdog.beat(f"step {step} of {total}")
                window.add(values["supervised_tokens"], sizes.pop(step))
                progress.update(loss=values["loss"])
                if step % config.log_every and step != total:
                    return
                phase = length.phase_of_step(step - 1)
                values |= window.values()
                values["phase"] = phase
                values["mean_start_step"] = float(np.mean(source.start_steps(phase)))
                writer.write(step, values)

            every = config.validate_every * length.steps_per_epoch
            for step in range(first + 1, total + 1):
                if begin_phase is not None and (step - 1) % per_phase == 0:
                    record(late.flush())
                    with window.pausing():
                        phase = length.phase_of_step(step - 1)
                        begin_phase(phase, layout.combine(state["params"], frozen))
                        iterator = source.iterate(step - 1, min(total, step - 1 + per_phase))
                        watchdog.beat(f"the beginning of phase {phase}")
                with window.waiting():
                    batch = next(iterator)
                del batch["index"]
                placed = sharding.place_batch(batch, mesh)
                sizes[step] = flops_of(placed)
                tracer.before(step)
                state, metrics = train_step(state, frozen, placed, key)
                record(late.push(step, metrics))
                told = is_told_to_end() and step < total
                tracer.after(step, metrics, last=told or step == total)
                validates = step == total or (every and step % every == 0)
                if validates or told or step % config.checkpoint_every == 0:
                    record(late.flush())  # A run that goes on from here finds the line written.
                    with window.pausing():
                        accuracy = None
                        if validates and validate is not None:
                            found = validate(layout.combine(state["params"], frozen))
                            accuracy = found["accuracy"]
                            writer.write(step, {f"validation_{k}": v for k, v in found.items()})
                        writer.send()
                        checkpoints.save(
                            step,
                            state,
                            extra={"iterator": iterator.get_state()},
                            metrics=None if accuracy is None else {"accuracy": accuracy},
                        )
                        watchdog.beat(f"the checkpoint of step {step}")
                if told:
                    checkpoints.wait()
                    raise processes.Preempted(f"saved the student of step {step}")
    return layout.combine(state["params"], frozen)
