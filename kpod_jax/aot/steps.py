"""The jitted steps of a job and their abstract arguments: shapes, dtypes and shardings.

Shapes are the maximum that the configuration allows. Nothing is loaded or computed.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from kpod_jax import distillation
from kpod_jax.config import paper
from kpod_jax.config.defaults import Config
from kpod_jax.data.buckets import round_up
from kpod_jax.evaluation import generation
from kpod_jax.models.student import Student, load_student, student_settings
from kpod_jax.parallel import sharding
from kpod_jax.training import losses
from kpod_jax.training.train_step import (
    abstract_state,
    learning_rate,
    loss_of,
    make_optimizer,
    make_train_step,
)
from kpod_jax.weighting import learn, weigh
from kpod_jax.weighting.alignment import Reading
from kpod_jax.weighting.answerer_batch import AnswererBatch
from kpod_jax.weighting.answerer_model import load_answerer

STEPS = ("train", "fit", "learn", "fill", "decode")
_STUDENT_TOKENS = 8  # Student tokens that share characters with one of another answerer's.
_ANSWER_TOKENS = 16  # Longer than any answer in the batches of weighting.


@dataclasses.dataclass(frozen=True)
class Step:
    """A jitted function and its arguments.

    Attributes:
      name: one of STEPS.
      function: jitted function.
      arguments: trees of jax.ShapeDtypeStruct with shardings, and numbers.
      parts: the arguments' contents by use.
      gradients: the parameters that have gradients.
      logits: bytes per device of the largest logits array.
      beside: what the stage holds in addition to the arguments while the step runs.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    parts: dict[str, Any]
    gradients: Any = ()
    logits: int = 0
    beside: Any = ()


class Job(NamedTuple):
    """Configuration, models and mesh of a run.

    Attributes:
      config: the run's configuration.
      weighting: its section, with the preset applied.
      student: student without parameters or tokenizer.
      answerer: answerer without parameters or tokenizer.
      mesh: mesh of devices, which need not be present.
    """

    config: Config
    weighting: Config
    student: Student
    answerer: Student
    mesh: Mesh


def make_job(config: Config, devices: Sequence[Any]) -> Job:
    """Creates a configuration's job without reading weights or tokenizers."""
    settings = student_settings(config.student, init="random")
    if settings.attention == "auto" and devices[0].platform == "tpu":
        settings.attention = "splash"  # What these devices would choose, which are not here.
    student = load_student(settings, config.seed, with_tokenizer=False)
    distillation.check_layout(config.distill, student)
    weighting = paper.mask_learning(config.weighting)
    answerer = load_answerer(student, weighting, with_tokenizer=False)
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    return Job(config, weighting, student, answerer, mesh)


def job_steps(job: Job, names: Sequence[str]) -> Iterator[Step]:
    """Yields the named steps of a job, at their maximum shapes."""
    if "train" in names:
        yield train_step(job)
    if job.weighting.weights == "learned":
        makers = {"fit": fit_step, "learn": learn_step}
        yield from (make(job) for name, make in makers.items() if name in names)
    if "fill" in names or "decode" in names:
        yield from generation_steps(job, names)


def train_step(job: Job) -> Step:
    """Returns the student's training step."""
    config, student, mesh = job.config.distill, job.student, job.mesh
    optimizer = make_optimizer(config, 1000)
    step = make_train_step(
        student.module,
        optimizer,
        learning_rate(config, 1000),
        micro_batches=config.micro_batches,
        dropout=config.dropout,
        loss=loss_of(config.loss),
    )
    trained, frozen = student.split(student.abstract(mesh))
    state = abstract_state(trained, optimizer)
    source, target = _max_lengths(job)
    if config.input_steps == "encoder":
        source += target
    if config.pack_length:
        source, target = 0, config.pack_length
    batch = batch_of(config.batch_size, source, target, mesh, packed=config.pack_length > 0)
    rows = _rows_per_device(config.batch_size // config.micro_batches, mesh)
    return Step(
        "train",
        step,
        (state, frozen, batch, _key()),
        {
            "parameters": (trained, frozen),
            "optimiser state": state["opt_state"],
            "batch": batch,
        },
        gradients=trained,
        logits=_logits_bytes(rows, target, job),
    )


def batch_of(
    rows: int, source: int, target: int, mesh: Mesh, *, packed: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns an abstract batch of `data.batches.BatchSource`, without its example indices.

    Raises:
      UserError: `rows` is not divisible by the number of devices.
    """
    sharding.check_rows(rows, mesh)
    arrays = {
        "input_ids": (source, jnp.int32),
        "input_mask": (source, jnp.bool_),
        "decoder_input_ids": (target, jnp.int32),
        "targets": (target, jnp.int32),
        "loss_weights": (target, jnp.float32),
        "supervised": (target, jnp.bool_),
    } | ({"segments": (target, jnp.int32)} if packed else {})
    by_rows = sharding.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((rows, size), dtype, sharding=by_rows)
        for name, (size, dtype) in arrays.items()
    } | {"divisor": jax.ShapeDtypeStruct((rows,), jnp.float32, sharding=by_rows)}


def fit_step(job: Job) -> Step:
    """Returns the step that fits the answerer."""
    config, answerer = job.weighting, job.answerer
    trained, frozen = answerer.split(answerer.abstract(job.mesh))
    optimizer = learn.answerer_optimizer(config.fit_learning_rate, 1000)
    state = abstract_state(trained, optimizer)["opt_state"]
    learner = weigh.make_learner(answerer, _embeddings(job), config)
    batch = _answerer_batch(job)
    masked = jax.ShapeDtypeStruct((), jnp.bool_)
    return Step(
        "fit",
        learn.make_fit_step(learner, optimizer),
        (trained, state, frozen, batch, _key(), masked),
        {"parameters": (trained, frozen), "optimiser state": state, "batch": batch},
        gradients=trained,
        beside=(trained, _embeddings(job)),  # The initial parameters are kept.
    )


def learn_step(job: Job) -> Step:
    """Returns the step that trains the mask generator."""
    config, answerer = job.weighting, job.answerer
    embeddings, batch = _embeddings(job), _answerer_batch(job)
    learner = weigh.make_learner(answerer, embeddings, config)
    optimizer = learn.generator_optimizer(config.learning_rate, config.clip_norm, config.steps)
    hidden = jax.ShapeDtypeStruct((*batch.rationale.shape, embeddings.shape[1]), jnp.float32)
    variables = jax.eval_shape(learner.generator.init, _key(), hidden, batch.rationale_mask)
    replicated = sharding.replicated(job.mesh)
    shardings = jax.tree.map(lambda _: replicated, variables["params"])
    params = _with_shardings(variables["params"], shardings)
    state = abstract_state(params, optimizer)["opt_state"]
    answerer_params = answerer.abstract(job.mesh)
    return Step(
        "learn",
        learn.make_learn_step(learner, optimizer),
        (params, state, answerer_params, embeddings, batch, _key(), 0.5, 1.0),
        {
            "parameters": (params, answerer_params, embeddings),
            "optimiser state": state,
            "batch": batch,
        },
        gradients=params,
        beside=answerer_params,  # The parameters from before fitting are kept.
    )


def generation_steps(job: Job, names: Sequence[str]) -> Iterator[Step]:
    """Yields the steps of `generation.Generator`.

    They run at the end of training, so the training state also takes memory.
    """
    config, student, mesh = job.config, job.student, job.mesh
    batch_size, (source, _) = config.eval.batch_size, _max_lengths(job)
    new_tokens = config.eval.max_new_tokens or config.student.max_target_tokens
    refilled = generation.refill_rows(batch_size, mesh)
    sharding.check_rows(refilled, mesh)
    sampling = generation.Sampling(config.eval.temperature, config.eval.top_p, config.seed)
    steps = generation.make_steps(student, mesh, 0, batch_size, new_tokens, sampling)
    params = student.abstract(mesh)
    trained, _ = student.split(params)
    optimizer = make_optimizer(config.distill, 1000)
    beside = (params, abstract_state(trained, optimizer)["opt_state"])
    # The compiler chooses the shardings of these two outputs.
    prepared = _abstract_output(mesh, steps.prepare, params)
    start = functools.partial(steps.start, size=source)
    rows = _abstract_output(mesh, start, prepared, steps.start, source)
    parts = {"parameters": prepared, "KV cache": rows.cache, "batch": rows._replace(cache=())}
    by_rows = sharding.batch_sharding(mesh)
    ids = jax.ShapeDtypeStruct((refilled, source), jnp.int32, sharding=by_rows)
    mask = jax.ShapeDtypeStruct((refilled, source), jnp.bool_, sharding=by_rows)
    slots = jax.ShapeDtypeStruct((refilled,), jnp.int32)
    if "fill" in names:
        arguments = (prepared, rows, ids, mask, slots, slots, None)
        yield Step("fill", steps.fill, arguments, parts, beside=beside)
    if "decode" in names:
        device_rows = _rows_per_device(batch_size, mesh)
        logits = device_rows * student.config.vocab_size * 4 // mesh.shape["tensor"]
        arguments = (prepared, rows, _key(), jax.ShapeDtypeStruct((), jnp.int32))
        yield Step("decode", steps.decode, arguments, parts, logits=logits, beside=beside)


def _abstract_output(
    mesh: Mesh, shapes: Any, argument: Any, function: Any = None, *static: Any
) -> Any:
    """Returns the shapes and shardings of a jitted function's output for an abstract argument.

    Args:
      mesh: the mesh to compile for.
      shapes: `function` with static arguments bound.
      argument: tree of jax.ShapeDtypeStruct with shardings.
      function: jitted function; None: `shapes`.
      *static: static arguments of `function`.
    """
    function = function or shapes
    with sharding.use(mesh):
        output = jax.eval_shape(shapes, argument)
        compiled = function.lower(argument, *static).compile()
    return _with_shardings(output, compiled.output_shardings)


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    def place(leaf: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(place, shapes, shardings)


def _max_lengths(job: Job) -> tuple[int, int]:
    """Returns the maximum prompt and target lengths, rounded up to buckets."""
    config = job.config.student
    return round_up(config.max_question_tokens), round_up(config.max_target_tokens)


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _rows_per_device(rows: int, mesh: Mesh) -> int:
    """Returns the number of a batch's rows per device."""
    with sharding.use(mesh):
        return sharding.rows_per_device(rows)


def _logits_bytes(rows: int, target: int, job: Job) -> int:
    """Returns the bytes per device of one chunk's logits, for `rows` rows on a device."""
    positions = rows * losses.chunk_of(rows, target)
    return positions * job.student.config.vocab_size * 4 // job.mesh.shape["tensor"]


def _embeddings(job: Job) -> Any:
    config = job.student.config
    shape = config.vocab_size, config.d_model
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding.replicated(job.mesh))


def _answerer_batch(job: Job) -> AnswererBatch:
    """Returns an abstract batch for the answerer, placed as by `MaskLearner.place`."""
    rows, (source, target) = job.weighting.batch_size, _max_lengths(job)
    where = sharding.global_sharding((rows,), job.mesh)

    def pair(size: int) -> list[Any]:
        return [
            jax.ShapeDtypeStruct((rows, size), dtype, sharding=where)
            for dtype in (jnp.int32, jnp.bool_)
        ]

    rationale, mask = pair(target)
    arrays = [*pair(source), rationale, mask, mask, *pair(_ANSWER_TOKENS)]
    reading = None
    if job.answerer.config.vocab_size != job.student.config.vocab_size:
        reading = Reading(rationale, mask, rationale, rationale, width=_STUDENT_TOKENS)
    return AnswererBatch(*arrays, reading=reading)  # pyright: ignore
