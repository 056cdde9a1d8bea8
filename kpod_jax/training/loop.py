"""The student's training: the loop around the train step, its checkpoints and its metrics.

A run is a function of its configuration and data, so one that was killed goes on from its last
checkpoint to the same bits.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from kpod_jax.config.defaults import Config
from kpod_jax.data.batches import BatchSource
from kpod_jax.models import layout
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
      steps_per_stage: in which c_i stands still.
      total_steps: of the whole training.
    """

    steps_per_epoch: int
    steps_per_stage: int
    total_steps: int

    @property
    def stages(self) -> int:
        """Number of stages, the last perhaps cut short."""
        return -(-self.total_steps // self.steps_per_stage)


def plan(config: Config, steps_per_epoch: int, stage_steps: int = 0) -> Plan:
    """The training's length by `distill.epochs`, `distill.max_steps` and `schedule.stage_steps`."""
    total = config.epochs * steps_per_epoch
    total = min(total, config.max_steps) if config.max_steps else total
    return Plan(steps_per_epoch, stage_steps or steps_per_epoch, total)


def train(
    module: nn.Module,
    params: Params,
    frozen: Params,
    source: BatchSource,
    start_steps: Callable[[int], np.ndarray],
    config: Config,
    watching: Config,
    *,
    length: Plan,
    seed: int,
    mesh: Mesh,
    workdir: pathlib.Path,
    validate: Callable[[Params], Mapping[str, float]],
    begin_stage: Callable[[int, Params], None] | None = None,
    loss: Loss = cross_entropy,
    rows_together: int = 1,
) -> None:
    """Trains from `params`, or goes on from the work directory's latest checkpoint.

    Every checkpoint goes to `checkpoints/student`, the metrics to `metrics.jsonl`. After the last
    step, and every `validate_every` epochs, the student is validated; the accuracy picks the best
    checkpoint.

    Args:
      module: the student.
      params: those that are trained, where training starts; donated. Checkpoints hold these alone.
      frozen: the others, or {}.
      source: of batches, which ask `start_steps` for c_i.
      start_steps: c_i by stage, for the metrics.
      config: `distill` of the configuration.
      watching: `watch` of the configuration.
      length: of the training, from `plan`.
      seed: of dropout.
      mesh: that the parameters lie on.
      workdir: of the run.
      validate: from parameters to figures of the validation split, "accuracy" among them, which
        become the metrics "validation_accuracy" and so on.
      begin_stage: is told each stage and its first parameters before any of its batches is made.
        None where the schedule is known beforehand: then batches are made ahead across stages.
      loss: see `make_train_step`.
      rows_together: see `make_train_step`.
    """
    optimizer = make_optimizer(config, length.total_steps)
    train_step = make_train_step(
        module,
        optimizer,
        learning_rate(config, length.total_steps),
        micro_batches=config.micro_batches,
        dropout=config.dropout,
        loss=loss,
        rows_together=rows_together,
    )
    flops_of = model_flops(module, params, frozen)
    key = jax.random.key(seed)
    with (
        sharding.use(mesh),
        Checkpoints(
            workdir / "checkpoints" / "student", keep=config.keep, best_metric="accuracy"
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
            return
        per_stage, total = length.steps_per_stage, length.total_steps
        # Where stages follow the student, none of a stage's batches may be made before it begins.
        first_batch = first // per_stage * per_stage if begin_stage else 0
        last_batch = min(total, first_batch + per_stage) if begin_stage else total
        iterator = source.iterate(first_batch, last_batch)
        if iterator_state is not None:
            iterator.set_state(iterator_state)
        late, window, sizes = OneStepLate(), monitoring.Window(), {}
        tracer = monitoring.Tracer(workdir / "profile", first + 1, watching.profile_steps)
        with (
            MetricsWriter(workdir, STAGE, restored_step=first if first else None) as writer,
            Progress(total, "Distilling", initial=first) as progress,
            processes.listening() as is_told_to_end,
            monitoring.Watchdog(watching.hang_seconds, "distill") as watchdog,
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
                stage = (step - 1) // per_stage
                values |= window.values()
                values["stage_number"] = stage
                values["mean_start_step"] = float(np.mean(start_steps(stage)))
                writer.write(step, values)

            every = config.validate_every * length.steps_per_epoch
            for step in range(first + 1, total + 1):
                if begin_stage is not None and (step - 1) % per_stage == 0:
                    record(late.flush())
                    with window.pausing():
                        stage = (step - 1) // per_stage
                        begin_stage(stage, layout.combine(state["params"], frozen))
                        iterator = source.iterate(step - 1, min(total, step - 1 + per_stage))
                        watchdog.beat(f"the beginning of stage {stage}")
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
                        if validates:
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
