"""What a run will take, before hours are spent: records, steps, tokens, FLOPs, time and memory.

    python -m kpod_jax.main --config=configs/llama_7b.py --mode=plan --tflops=200

Loads the configuration, tokenizers and data, and tokenizes; loads no weights and compiles nothing.
FLOPs are those of the matrix products of one traced step, scaled by its tokens. Memory is that of
parameters, gradients and optimizer state; activations come on top (`--mode=compile`).
"""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from kpod_jax import baselines
from kpod_jax.aot.compile import bytes_on_a_device
from kpod_jax.aot.steps import Job, Step, batch_of, job_steps, make_job
from kpod_jax.config.defaults import Config
from kpod_jax.data.prepare import Data, prepare_data
from kpod_jax.distillation import batch_source, training_plan
from kpod_jax.models.student import Student, load_student
from kpod_jax.parallel import devices
from kpod_jax.training import costs, forward
from kpod_jax.weighting.answerer_model import load_answerer, read_records


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What a stage takes.

    Attributes:
      stage: name of the stage, and of its part if it has several.
      steps: number of steps or batches.
      tokens: number of tokens in them, with padding.
      flops: FLOPs of their matrix products, over all devices.
      bytes: parameters, gradients and optimizer state per device.
    """

    stage: str
    steps: int
    tokens: float
    flops: float
    bytes: int


def plan(config: Config, tflops: float = 0.0) -> str:
    """Returns a text about the run that a configuration describes.

    Args:
      config: a configuration that `cli.checks.check` accepts.
      tflops: achieved TFLOP/s of all devices together; 0: 40% of their peak, if that is known.

    Raises:
      UserError: the run would fail at loading or tokenizing.
    """
    student = load_student(config.student, config.seed)
    data = prepare_data(config.data, student)
    job = make_job(config, jax.devices())
    lines = [_describe_devices(job), f"student: {_describe(job.student, job)}"]
    if config.weighting.weights == "learned":
        lines.append(f"answerer: {_describe(job.answerer, job)}")
        answerer = load_answerer(student, job.weighting)
        read_records(data.train, student, answerer)  # Says what it cannot read.
    lines += [f"data: {config.data.name}: {data}", *_rejected(data), *data.notes]
    lengths = data.train.questions.lengths, data.train.targets.lengths
    sizes = ", ".join(f"mean {size.mean():.0f}, longest {size.max()}" for size in lengths)
    lines += [f"tokens of questions and targets: {sizes}", ""]
    stages = list(plan_stages(job, student, data))
    rate = 1e12 * tflops or _peak(job) * 0.4
    lines += _table(stages, rate)
    return "\n".join(lines)


def plan_stages(job: Job, student: Student, data: Data) -> Iterator[StagePlan]:
    """Yields the plan of each stage that computes on devices."""
    config, weighting = job.config, job.weighting
    steps = {step.name: step for step in job_steps(job, ("train", "fit", "learn"))}
    train = data.train
    mean_example = float(np.mean(train.questions.lengths + train.targets.lengths))
    folds = 2 if weighting.fit == "other_fold" else 1
    counts = {
        "fit": weighting.fit_unmasked_steps + weighting.fit_masked_steps,
        "learn": weighting.steps,
    }
    for name, count in counts.items():
        if name in steps and count:
            tokens = mean_example * weighting.batch_size
            yield _stage(f"weigh: {name}", steps[name], folds * count, tokens)
    training = baselines.make_training_set(baselines.method_of(config, student), student, data)
    source = batch_source(config.distill, student, training)
    length = training_plan(config.distill, source, config.schedule.phase_steps)
    used = float(np.sum(training.tokenized.questions.lengths + training.tokenized.targets.lengths))
    padded = used / (1 - source.padding_fraction)
    if config.schedule.curriculum != "full":
        scored = _score_step(job, source.shapes[-1])
        batches = source.steps_per_epoch
        yield _stage("score", scored, batches, padded / batches)
    if config.distill.epochs:
        count = length.total_steps
        yield _stage("distill", steps["train"], count, padded / source.steps_per_epoch)
    params = job.student.abstract(job.mesh)
    questions, samples = len(data.records(config.eval.split)), config.eval.samples
    generated = questions * samples * mean_example
    # Each token passes every parameter once, in a multiplication and an addition.
    flops = 2.0 * _count(params) * generated
    steps_of_batch = int(np.ceil(generated / config.eval.batch_size))
    yield StagePlan("eval", steps_of_batch, generated, flops, bytes_on_a_device(params))


def _stage(name: str, step: Step, count: int, tokens: float) -> StagePlan:
    """Scales a step at its maximum shape to `tokens` tokens, `count` times."""
    traced = step.function.trace(*step.arguments)
    flops = costs.flops(traced.jaxpr) * tokens / _tokens(step)
    held = sum(bytes_on_a_device(step.parts[key]) for key in _HELD if key in step.parts)
    held += bytes_on_a_device(step.gradients) + bytes_on_a_device(step.beside)
    return StagePlan(name, count, count * tokens, count * flops, held)


_HELD = ("parameters", "optimiser state")


def _tokens(step: Step) -> int:
    """Returns the number of token positions in a step's batch."""
    batch = step.parts["batch"]
    if isinstance(batch, dict):
        return sum(int(np.prod(batch[key].shape)) for key in ("input_ids", "targets"))
    return sum(int(np.prod(part.shape)) for part in (batch.question, batch.rationale, batch.answer))


def _score_step(job: Job, shape: tuple[int, int]) -> Step:
    """Returns the forward pass of scoring, at the largest bucket's shape."""
    params = job.student.abstract(job.mesh)
    batch = batch_of(job.config.distill.batch_size, *shape, job.mesh)
    function = forward.compile_target_losses(job.student.module, job.mesh)  # pyright: ignore[reportArgumentType]
    parts = {"parameters": params, "batch": batch}
    return Step("score", function, (params, batch), parts)


def _describe(student: Student, job: Job) -> str:
    count = _count(student.abstract(job.mesh))
    return f"{student.model}, {count / 1e6:,.1f} M parameters"


def _count(params: Any) -> int:
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(params))


def _describe_devices(job: Job) -> str:
    kind = job.mesh.devices.flat[0].device_kind
    axes = ", ".join(f"{axis} {size}" for axis, size in job.mesh.shape.items())
    return f"devices: {job.mesh.size} × {kind} ({axes}), products in {job.config.student.dtype}"


def _peak(job: Job) -> float:
    device = devices.lookup(job.mesh.devices.flat[0].device_kind)
    return 0.0 if device is None else device.peak_flops * job.mesh.size


def _rejected(data: Data) -> list[str]:
    """Returns a line per reason that several records share, most frequent first."""
    reasons = collections.Counter(row["reason"] for row in data.rejected)
    return [f"  rejected, {count}: {reason}" for reason, count in reasons.most_common(3)]


def _table(stages: list[StagePlan], rate: float) -> list[str]:
    header = f"{'stage':<14} {'steps':>9} {'tokens':>10} {'PFLOPs':>10} {'hours':>8} {'GB':>8}"
    lines = [header]
    for stage in stages:
        hours = f"{stage.flops / rate / 3600:8.2f}" if rate else f"{'?':>8}"
        lines.append(
            f"{stage.stage:<14} {stage.steps:>9,} {stage.tokens / 1e6:>9,.2f}M "
            f"{stage.flops / 1e15:>10.3g} {hours} {stage.bytes / 1e9:>8.2f}"
        )
    total = sum(stage.flops for stage in stages)
    hours = (
        f"{total / rate / 3600:.2f} hours at {rate / 1e12:,.1f} TFLOP/s"
        if rate
        else "set --tflops to the rate of your devices for the hours"
    )
    lines += [f"Together {total / 1e15:.3g} PFLOPs; {hours}.", _NOTE]
    return lines


_NOTE = (
    "GB: parameters, gradients and optimizer state per device; activations come on top: "
    "--mode=compile counts them for a TPU topology. Generation counts targets of training length."
)
