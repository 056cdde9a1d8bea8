"""The student's training loop, with its checkpoints and metrics.

A run is a function of its configuration and data, so an interrupted run resumes from its last
checkpoint and ends with the same bits.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np

from kpod_jax.config.defaults import Config
from kpod_jax.data.batches import BatchSource
from kpod_jax.models import layout
from kpod_jax.models.student import Student
from kpod_jax.parallel import processes, sharding
from kpod_jax.training import divergence, monitoring
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
    """The length of a training run.

    Attributes:
      steps_per_epoch: steps in which every example occurs once.
      steps_per_phase: steps during which c_i stays fixed.
      total_steps: steps of the whole run.
    """

    steps_per_epoch: int
    steps_per_phase: int
    total_steps: int

    @property
    def phases(self) -> int:
        """Number of phases; the last may be shorter."""
        return -(-self.total_steps // self.steps_per_phase)

    def phase_of_step(self, step: int) -> int:
        """Returns the phase of a step, both counted from 0."""
        return step // self.steps_per_phase


def plan(config: Config, steps_per_epoch: int, phase_steps: int = 0) -> Plan:
    """Returns the training length set by `distill.epochs` and `distill.max_steps`.

    Args:
      config: `distill` of the configuration.
      steps_per_epoch: batches in which every example occurs once.
      phase_steps: steps per phase; 0: one epoch.
    """
    total = config.epochs * steps_per_epoch
    total = min(total, config.max_steps) if config.max_steps else total
    return Plan(steps_per_epoch, phase_steps or steps_per_epoch, total)


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a step minimizes.

    Attributes:
      loss: see `make_train_step`.
      group_size: number of adjacent rows that are never split across micro-batches.
    """

    loss: Loss = cross_entropy
    group_size: int = 1


@dataclasses.dataclass(frozen=True)
class Hooks:
    """Callbacks of the training loop.

    Attributes:
      validate: maps parameters to metrics on the validation split, which are logged as
        "validation_accuracy" and so on; the accuracy selects the best checkpoint. None: no
        validation, and the last checkpoint is the best.
      begin_phase: called with each phase and its initial parameters before any of its batches is
        built. None if the schedule is known in advance: batches are then prefetched across phases.
    """

    validate: Callable[[Params], Mapping[str, float]] | None = None
    begin_phase: Callable[[int, Params], None] | None = None


@dataclasses.dataclass(frozen=True)
class Recording:
    """Where a training run is recorded, and how it is monitored.

    Attributes:
      workdir: work directory of the run.
      hang_seconds: see `monitoring.Watchdog`.
      profile_steps: number of steps to profile.
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
    """Trains from `params`, or resumes from the latest checkpoint in the work directory.

    Checkpoints go to `checkpoints/student`, metrics to `metrics.jsonl`. The student is validated
    after the last step and every `validate_every` epochs.

    Args:
      config: `distill` of the configuration.
      student: model without parameters; its seed is used for dropout.
      params: initial parameters, on a mesh; donated. Checkpoints hold only the trainable ones.
      source: source of batches.
      length: length of the run, from `plan`.
      objective: what to minimize.
      hooks: callbacks.
      recording: where to record the run.

    Returns:
      The parameters after the last step.

    Raises:
      UserError: the training diverged; its last finite checkpoint is kept.
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
        skip_nonfinite=config.skip_nonfinite > 0,
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
        first, extra = 0, {}
        if checkpoints.latest_step() is not None:
            restored = checkpoints.restore_like(state)
            state, first, extra = restored.state, restored.step, restored.extra
            processes.log(f"{STAGE}: resuming from step {first} of {length.total_steps}")
        if first >= length.total_steps:
            return layout.combine(state["params"], frozen)
        phase_steps, total = length.steps_per_phase, length.total_steps
        # If a phase depends on the student, none of its batches may be built before it begins.
        first_batch = first // phase_steps * phase_steps if begin_phase else 0
        last_batch = min(total, first_batch + phase_steps) if begin_phase else total
        iterator = source.iterate(first_batch, last_batch)
        if extra:
            iterator.set_state(extra["iterator"])
        guard = divergence.Guard(
            config.skip_nonfinite, source.record_ids, checkpoints.latest_step, extra.get("skipped")
        )
        delayed, window, step_flops = OneStepLate(), monitoring.Window(), {}
        tracer = monitoring.Tracer(workdir / "profile", first + 1, recording.profile_steps)
        with (
            MetricsWriter(workdir, STAGE, restored_step=first if first else None) as writer,
            Progress(total, "Distilling", initial=first, compiles=True) as progress,
            processes.defer_sigterm() as should_stop,
            monitoring.Watchdog(recording.hang_seconds, "distill") as watchdog,
        ):

            def record(done: tuple[int, dict[str, float]] | None) -> None:
                """Writes a step's metrics every `log_every` steps."""
                if done is None:
                    return
                step, values = done
                guard.check(step, values)
                watchdog.beat(f"step {step} of {total}")
                window.add(values["supervised_tokens"], step_flops.pop(step))
                progress.update(loss=values["loss"])
                if step % config.log_every and step != total:
                    return
                phase = length.phase_of_step(step - 1)
                values |= window.values()
                values["phase"] = phase
                if config.skip_nonfinite:
                    values["skipped_steps"] = guard.skipped
                values["mean_start_step"] = float(np.mean(source.start_steps(phase)))
                writer.write(step, values)

            validation_steps = config.validate_every * length.steps_per_epoch
            for step in range(first + 1, total + 1):
                if begin_phase is not None and (step - 1) % phase_steps == 0:
                    record(delayed.flush())
                    with window.pausing():
                        guard.check_state(step - 1, state)
                        phase = length.phase_of_step(step - 1)
                        begin_phase(phase, layout.combine(state["params"], frozen))
                        iterator = source.iterate(step - 1, min(total, step - 1 + phase_steps))
                        watchdog.beat(f"start of phase {phase}")
                with window.waiting():
                    batch = next(iterator)
                del batch["index"]
                placed = sharding.place_batch(batch, mesh)
                step_flops[step] = flops_of(placed)
                tracer.before(step)
                state, metrics = train_step(state, frozen, placed, key)
                record(delayed.push(step, metrics))
                stopping = should_stop()
                tracer.after(step, metrics, last=stopping or step == total)
                validating = step == total or (validation_steps and step % validation_steps == 0)
                if validating or stopping or step % config.checkpoint_every == 0:
                    record(delayed.flush())  # A run resumed from here has the line.
                    with window.pausing():
                        guard.check_state(step, state)
                        accuracy = None
                        if validating and validate is not None:
                            scores = validate(layout.combine(state["params"], frozen))
                            accuracy = scores["accuracy"]
                            writer.write(step, {f"validation_{k}": v for k, v in scores.items()})
                        writer.send()
                        checkpoints.save(
                            step,
                            state,
                            extra={"iterator": iterator.get_state()}
                            | ({"skipped": guard.counts} if config.skip_nonfinite else {}),
                            metrics=None if accuracy is None else {"accuracy": accuracy},
                        )
                        watchdog.beat(f"checkpoint at step {step}")
                if stopping:
                    checkpoints.wait()
                    raise processes.Preempted(f"saved the student at step {step}")
    return layout.combine(state["params"], frozen)
