"""The jitted steps of a job and what they are called with: shapes, dtypes and shardings alone.

Shapes are the longest that the configuration allows. Nothing is loaded or computed.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from kpod_jax import distillation
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
from kpod_jax.weighting.answerer_batch import AnswererBatch

STEPS = ("train", "fit", "learn", "fill", "decode")
_ANSWER_TOKENS = 16  # More than those of the data sets' answers, of which weighting makes batches.


@dataclasses.dataclass(frozen=True)
class Step:
    """A jitted function and what it is called with.

    Attributes:
      name: of STEPS.
      function: jitted.
      arguments: trees of jax.ShapeDtypeStruct with shardings, and numbers.
      parts: what is in the arguments, by name.
      gradients: those parameters that have some.
      logits: bytes of the largest array of logits on a device.
      beside: what the stage holds besides the arguments while the step runs.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    parts: dict[str, Any]
    gradients: Any = ()
    logits: int = 0
    beside: Any = ()


class Job(NamedTuple):
    """What steps are made for.

    Attributes:
      config: of the run.
      student: model without parameters and tokenizer.
      answerer: likewise.
      mesh: of devices that need not be there.
    """

    config: Config
    student: Student
    answerer: Student
    mesh: Mesh


def make_job(config: Config, devices: Sequence[Any]) -> Job:
    """A configuration's models, whose weights and tokenizers are not read."""
    settings = student_settings(config.student, init="random")
    student = load_student(settings, config.seed, with_tokenizer=False)
    distillation.check_layout(config.distill, student)
    answerer = weigh.answerer_of(student, config.weighting, with_tokenizer=False)
    return Job(config, student, answerer, sharding.make_mesh(**config.mesh, devices=devices))


def job_steps(job: Job, names: Sequence[str]) -> Iterator[Step]:
    """The steps of a job, in their longest shapes."""
    if "train" in names:
        yield train_step(job)
    if job.config.weighting.weights == "learned":
        makers = {"fit": fit_step, "learn": learn_step}
        yield from (make(job) for name, make in makers.items() if name in names)
    if "fill" in names or "decode" in names:
        yield from generation_steps(job, names)


def train_step(job: Job) -> Step:
    """The student's step."""
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
    source, target = _lengths(job)
    if config.input_steps == "encoder":
        source += target
    if config.pack_length:
        source, target = 0, config.pack_length
    batch = batch_of(config.batch_size, source, target, mesh, packed=config.pack_length > 0)
    rows = _rows(config.batch_size // config.micro_batches, mesh)
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
        logits=_logits(rows, target, job),
    )


def batch_of(
    rows: int, source: int, target: int, mesh: Mesh, *, packed: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of `data.batches.BatchSource`, without its numbers of examples.

    Raises:
      UserError: the devices do not divide the rows.
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
    where = sharding.batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((rows, size), dtype, sharding=where)
        for name, (size, dtype) in arrays.items()
    } | {"divisor": jax.ShapeDtypeStruct((rows,), jnp.float32, sharding=where)}


def fit_step(job: Job) -> Step:
    """The answerer's step."""
    config, answerer = job.config.weighting, job.answerer
    params = answerer.abstract(job.mesh)
    optimizer = learn.answerer_optimizer(config.fit_learning_rate, 1000)
    state = abstract_state(params, optimizer)["opt_state"]
    learner = weigh.make_learner(answerer, _embeddings(job), config)
    batch = _answerer_batch(job)
    masked = jax.ShapeDtypeStruct((), jnp.bool_)
    return Step(
        "fit",
        learn.make_fit_step(learner, optimizer),
        (params, state, batch, _key(), masked),
        {"parameters": params, "optimiser state": state, "batch": batch},
        gradients=params,
        beside=(params, _embeddings(job)),  # As they were before.
    )


def learn_step(job: Job) -> Step:
    """The generator's step."""
    config, answerer = job.config.weighting, job.answerer
    embeddings, batch = _embeddings(job), _answerer_batch(job)
    learner = weigh.make_learner(answerer, embeddings, config)
    optimizer = learn.generator_optimizer(config.learning_rate, config.clip_norm, config.steps)
    hidden = jax.ShapeDtypeStruct((*batch.rationale.shape, embeddings.shape[1]), jnp.float32)
    made = jax.eval_shape(learner.generator.init, _key(), hidden, batch.rationale_mask)
    whole = sharding.replicated(job.mesh)
    params = _placed(made["params"], jax.tree.map(lambda _: whole, made["params"]))
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
        beside=answerer_params,  # As they were before the answerer was fit.
    )


def generation_steps(job: Job, names: Sequence[str]) -> Iterator[Step]:
    """Those of `generate.Generator`, as they run at the end of training, with its state at hand."""
    config, student, mesh = job.config, job.student, job.mesh
    batch_size, (source, _) = config.eval.batch_size, _lengths(job)
    new_tokens = config.eval.max_new_tokens or config.student.max_target_tokens
    filled = generation.refill_rows(batch_size, mesh)
    sharding.check_rows(filled, mesh)
    sampling = generation.Sampling(config.eval.temperature, config.eval.top_p, config.seed)
    steps = generation.make_steps(student, mesh, 0, batch_size, new_tokens, sampling)
    params = student.abstract(mesh)
    trained, _ = student.split(params)
    optimizer = make_optimizer(config.distill, 1000)
    beside = (params, abstract_state(trained, optimizer)["opt_state"])
    # What these two make lies where the compiler puts it.
    prepared = _made(mesh, steps.prepare, params)
    rows = _made(mesh, functools.partial(steps.start, size=source), prepared, steps.start, source)
    parts = {"parameters": prepared, "KV cache": rows.cache, "batch": rows._replace(cache=())}
    where = sharding.batch_sharding(mesh)
    ids = jax.ShapeDtypeStruct((filled, source), jnp.int32, sharding=where)
    mask = jax.ShapeDtypeStruct((filled, source), jnp.bool_, sharding=where)
    slots = jax.ShapeDtypeStruct((filled,), jnp.int32)
    if "fill" in names:
        arguments = (prepared, rows, ids, mask, slots, slots, None)
        yield Step("fill", steps.fill, arguments, parts, beside=beside)
    if "decode" in names:
        logits = _rows(batch_size, mesh) * student.config.vocab_size * 4 // mesh.shape["tensor"]
        arguments = (prepared, rows, _key(), jax.ShapeDtypeStruct((), jnp.int32))
        yield Step("decode", steps.decode, arguments, parts, logits=logits, beside=beside)


def _made(mesh: Mesh, shapes: Any, argument: Any, function: Any = None, *static: Any) -> Any:
    """What a jitted function makes of an abstract argument: shapes, and where they lie."""
    function = function or shapes
    with sharding.use(mesh):
        made = jax.eval_shape(shapes, argument)
        compiled = function.lower(argument, *static).compile()
    return _placed(made, compiled.output_shardings)


def _placed(shapes: Any, shardings: Any) -> Any:
    def place(leaf: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    return jax.tree.map(place, shapes, shardings)


def _lengths(job: Job) -> tuple[int, int]:
    """Of the longest prompt and the longest target."""
    config = job.config.student
    return round_up(config.max_question_tokens), round_up(config.max_target_tokens)


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _rows(rows: int, mesh: Mesh) -> int:
    """Rows of a batch on a device."""
    with sharding.use(mesh):
        return sharding.rows_of_a_device(rows)


def _logits(rows: int, target: int, job: Job) -> int:
    """Bytes of the logits of a chunk, of so many rows on a device."""
    positions = rows * losses.chunk_of(rows, target)
    return positions * job.student.config.vocab_size * 4 // job.mesh.shape["tensor"]


def _embeddings(job: Job) -> Any:
    config = job.student.config
    shape = config.vocab_size, config.d_model
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding.replicated(job.mesh))


def _answerer_batch(job: Job) -> AnswererBatch:
    """A batch for the answerer, as `MaskLearner.place` puts it on the mesh."""
    rows, (source, target) = job.config.weighting.batch_size, _lengths(job)
    where = sharding.whole_sharding((rows,), job.mesh)

    def pair(size: int) -> list[Any]:
        return [
            jax.ShapeDtypeStruct((rows, size), dtype, sharding=where)
            for dtype in (jnp.int32, jnp.bool_)
        ]

    rationale, mask = pair(target)
    arrays = [*pair(source), rationale, mask, mask, *pair(_ANSWER_TOKENS)]
    return AnswererBatch(*arrays)  # pyright: ignore
