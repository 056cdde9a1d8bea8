"""Distillation: trains the student on token weights and a schedule (Eq. 15)."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from kpod_jax.baselines import TrainingSet
from kpod_jax.config.defaults import Config
from kpod_jax.data.batches import BatchSource, Layout, Supervision
from kpod_jax.data.prepare import Data
from kpod_jax.data.records import Ragged, as_ragged
from kpod_jax.data.tokens import TokenizedSet, in_rationale, step_starts
from kpod_jax.models import layout as param_layout
from kpod_jax.models.student import Student
from kpod_jax.parallel import processes, sharding
from kpod_jax.training import loop
from kpod_jax.training.checkpoints import Checkpoints
from kpod_jax.training.loop import Hooks, Plan, Recording
from kpod_jax.training.train_step import loss_of
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError, listed
from kpod_jax.weighting.context import weights_by_context

CHECKPOINTS = "checkpoints/student"
SUPERVISED_FILE = "distill.json"  # Supervised token counts, for the evaluation.


@dataclasses.dataclass(frozen=True)
class Trained:
    """The parameters of a trained student, and a summary of its training.

    Attributes:
      params: all parameters, on the mesh.
      step: training step of the parameters.
      supervised: "supervised_rationale_tokens" and "supervised_answer_tokens" of the training; None
        if it has not finished.
      message: one-line summary.
      left_out: {"id", "reason"} of the method's examples that do not fit the student.
    """

    params: Any
    step: int
    supervised: dict[str, int] | None
    message: str = ""
    left_out: Sequence[dict[str, str]] = ()

    OUTPUTS: ClassVar = (CHECKPOINTS,)

    def save(self, root: pathlib.Path) -> None:
        """Writes the supervised token counts; the checkpoints are already on disk."""
        if self.left_out:
            files.write_jsonl(root / "records/left_out.jsonl", self.left_out)
        assert self.supervised is not None
        files.write_json(root / SUPERVISED_FILE, self.supervised)

    def __str__(self) -> str:
        """One-line summary."""
        return self.message


def distill(
    config: Config,
    student: Student,
    data: Data | TrainingSet,
    weights: Ragged | Sequence[npt.ArrayLike] | None = None,
    schedule: Callable[[int], np.ndarray] | npt.ArrayLike | None = None,
    mesh: Mesh | None = None,
    *,
    hooks: Hooks | None = None,
    recording: Recording | None = None,
) -> Trained:
    """Trains a student on rationales and answers (Eq. 15).

    Args:
      config: the `distill` section of a configuration.
      student: model and tokenizer.
      data: the training records, or a method's training set built from them.
      weights: w_j of every rationale token, one array per rationale; None: all 1.
      schedule: maps a phase to c_i of every example, [N] integers; or a table [phases, N] of them,
        whose last row remains in effect; None: whole rationales. Its attribute `phase_steps`, if it
        has one, is the number of training steps per phase; otherwise a phase is an epoch.
      mesh: device mesh; None: all devices.
      hooks: callbacks during training.
      recording: where to keep checkpoints and metrics; an interrupted training resumes from them
        bit-exactly. None: nothing is kept.

    Raises:
      UserError: the configuration does not fit the method, the loss or the training.
    """
    check_layout(config, student)
    mesh, hooks = mesh or sharding.make_mesh(), hooks or Hooks()
    training = data if isinstance(data, TrainingSet) else TrainingSet(data.train)
    for note in training.notes:
        processes.log(f"distill: {note}")
    phase_steps = getattr(schedule, "phase_steps", 0)
    if schedule is not None and not callable(schedule):
        table = np.asarray(schedule, np.int32)
        schedule = lambda phase: table[min(phase, len(table) - 1)]  # noqa: E731
    if training.start_steps is not None:
        start_steps_N = training.start_steps
        schedule = lambda phase: start_steps_N  # noqa: E731
    source = batch_source(
        config,
        student,
        training,
        loss_weights(config, training.tokenized, as_ragged(weights)),
        schedule,
        phase_of_step=lambda step: length.phase_of_step(step),
        host=sharding.host_part(mesh),
    )
    length = training_plan(config, source, phase_steps)
    if config.equal_tokens:
        source, length = _equal_tokens(config, student, training, source, length, mesh, hooks)
    with contextlib.ExitStack() as stack:
        if recording is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            recording = Recording(pathlib.Path(folder))
        params = loop.train(
            config,
            student,
            student.load(mesh),
            source,
            length,
            objective=loop.Objective(
                loss_of(config.loss, training.objective.loss),
                group_size=2 if training.groups is not None else 1,
            ),
            hooks=hooks,
            recording=recording,
        )
    rationale, answer = source.supervised_tokens(length.total_steps).sum(axis=0).tolist()
    message = (
        f"{training}{length.total_steps} steps in {length.phases} phases, "
        f"{rationale:,} rationale and {answer:,} answer tokens supervised, "
        f"batches of shapes {', '.join(f'{s}+{u}' for s, u in source.shapes)}, "
        f"{source.padding_fraction:.0%} padding"
    )
    left_out = [{"id": bad.id, "reason": bad.reason} for bad in training.left_out]
    return Trained(params, length.total_steps, _supervised(rationale, answer), message, left_out)


def _supervised(rationale: int, answer: int) -> dict[str, int]:
    return {"supervised_rationale_tokens": rationale, "supervised_answer_tokens": answer}


def batch_source(
    config: Config,
    student: Student,
    training: TrainingSet,
    weights: Ragged | None = None,
    schedule: Callable[[int], np.ndarray] | None = None,
    *,
    phase_of_step: Callable[[int], int] | None = None,
    host: tuple[int, int] = (0, 1),
) -> BatchSource:
    """Returns the training batches; here the schedule meets the loss.

    Args:
      config: the `distill` section of a configuration.
      student: model and tokenizer.
      training: the examples.
      weights: from `loss_weights`.
      schedule: maps a phase to c_i.
      phase_of_step: maps a training step to its phase.
      host: see `Layout`.
    """
    return BatchSource(
        training.tokenized,
        Layout(
            config.batch_size,
            student.seed,
            student.tokenizer.pad_token_id,
            student.decoder_start(training.prompt or student.prompt),
            buckets=config.buckets,
            pack_length=config.pack_length,
            input_steps=config.input_steps,
            host=host,
        ),
        Supervision(
            weights=weights,
            start_steps=schedule,
            phase_of_step=phase_of_step,
            # A method with its own start steps supervises exactly the tokens they select.
            step_starts=config.step_start_weight == "answer" and training.start_steps is None,
            example_weights=training.weights,
            groups=training.groups,
            arrays=training.objective.arrays,
        ),
    )


def loss_weights(config: Config, tokenized: TokenizedSet, weights: Ragged | None) -> Ragged | None:
    """Returns w_j of Eq. 15 as used in the loss, float32; None if all are 1.

    Applies, in this order: averaging over equal contexts of `distill.weight_context` tokens; the
    minimum `distill.min_weight`; with `distill.step_start_weight="answer"`, weight 1 for the first
    token of each step; with `distill.rescale_weights="mean"`, division of all other weights by
    their mean within the rationale, so that the mean of all is 1.

    Raises:
      UserError: a weight is not finite.
    """
    if weights is None:
        return None
    if rows := weights.nonfinite():
        ids = [tokenized.records[i].id for i in rows]
        raise UserError(
            f"Token weights of {len(ids)} records are NaN or infinite: {listed(ids, 8)}. Run "
            "--mode=weigh again, or pass weights between 0 and 1."
        )
    weights = weights_by_context(weights, tokenized.targets, config.weight_context)
    values = np.maximum(weights.values, np.float32(config.min_weight))
    kept = np.ones(len(values), bool)
    if config.step_start_weight == "answer":
        kept = ~step_starts(tokenized)[in_rationale(tokenized)]
    if config.rescale_weights == "mean":
        starts = weights.offsets[:-1]
        sums = np.add.reduceat(values * kept, starts, dtype=np.float64)
        counts = np.add.reduceat(kept, starts, dtype=np.int64)
        means = np.maximum(sums, 1e-9) / np.maximum(counts, 1)
        values = values / np.repeat(means, weights.lengths)
    return Ragged(np.where(kept, values, 1).astype(np.float32), weights.offsets)


def training_plan(config: Config, source: BatchSource, phase_steps: int = 0) -> Plan:
    """Returns the length of the training, with at least one phase, as schedules require."""
    length = loop.plan(config, source.steps_per_epoch, phase_steps)
    return length if length.phases else dataclasses.replace(length, total_steps=1)


def check_layout(config: Config, student: Student) -> None:
    """Raises a `UserError` if the student does not support the row layout of `distill`."""
    if config.pack_length and not student.decoder_only:
        raise UserError(
            f"distill.pack_length={config.pack_length}: packing requires a decoder-only student, "
            f"but {student.model!r} has an encoder; expected 0."
        )
    if student.decoder_only and config.input_steps == "encoder":
        raise UserError(
            f"distill.input_steps='encoder': the student {student.model!r} has no encoder; "
            "expected decoder."
        )


def read_trained(
    checkpoint: str, student: Student, mesh: Mesh, workdir: pathlib.Path, trains: bool = True
) -> Trained:
    """Restores a student from the checkpoints in a work directory.

    Args:
      checkpoint: "best" (by validation accuracy), "latest", or a step number.
      student: model without parameters.
      mesh: mesh to place the parameters on.
      workdir: work directory of the run.
      trains: whether the run trains; False: returns the student before distillation.

    Raises:
      UserError: there is no such checkpoint.
    """
    if not trains:
        return Trained(student.load(mesh), 0, _supervised(0, 0))
    directory, which = workdir / CHECKPOINTS, str(checkpoint)
    with Checkpoints(directory, best_metric="accuracy", read_only=True) as checkpoints:
        restored = checkpoints.restore_params(
            student.split(student.abstract(mesh))[0],
            int(which) if which.isdecimal() else which,  # pyright: ignore[reportArgumentType]
        )
    params = restored.state
    if student.module.lora is not None:
        params = param_layout.combine(params, student.split(student.load(mesh))[1])
    path, kinds = workdir / SUPERVISED_FILE, dict.fromkeys(_supervised(0, 0), int)
    supervised = files.read_output(path, loop.STAGE, kinds) if path.exists() else None
    return Trained(params, restored.step, supervised)


def _equal_tokens(
    config: Config,
    student: Student,
    training: TrainingSet,
    source: BatchSource,
    length: Plan,
    mesh: Mesh,
    hooks: Hooks,
) -> tuple[BatchSource, Plan]:
    """Returns a training on whole rationales with as many rationale tokens as the schedule has."""
    if hooks.begin_phase is not None:
        raise UserError(
            "distill.equal_tokens=True: this curriculum depends on the student's losses, so its "
            "token count is unknown before training; expected a curriculum without feedback, such "
            "as kpod."
        )
    scheduled = int(source.supervised_tokens(length.total_steps)[:, 0].sum())
    host, phase_of_step = sharding.host_part(mesh), length.phase_of_step
    plain = batch_source(config, student, training, phase_of_step=phase_of_step, host=host)
    steps = _steps_for_tokens(plain, scheduled, length.total_steps)
    return plain, dataclasses.replace(length, total_steps=steps)


def _steps_for_tokens(source: BatchSource, rationale_tokens: int, max_steps: int) -> int:
    """Returns the steps, at most `max_steps`, that supervise `rationale_tokens` tokens."""
    sums = np.cumsum(source.supervised_tokens(max_steps)[:, 0])
    return min(max_steps, 1 + int(np.searchsorted(sums, rationale_tokens)))
