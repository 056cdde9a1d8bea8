"""The jitted steps of a job and what they are called with: shapes, dtypes and shardings alone.

Shapes are the longest that the configuration allows. Nothing is loaded or computed.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from kpod_jax.config.defaults import Config
from kpod_jax.data.buckets import round_up
from kpod_jax.evaluation import generation
from kpod_jax.models.student import Student
from kpod_jax.parallel import sharding
from kpod_jax.run import Run
from kpod_jax.stages import weigh as weigh_stage
from kpod_jax.training import losses
from kpod_jax.training.train_step import (
    abstract_state,
    learning_rate,
    loss_of,
    make_optimizer,
    make_train_step,
)
from kpod_jax.weighting import learn, weigh
from kpod_jax.weighting.problems import Problems

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


class AbstractRun(Run):
    """A run without work directory, weights and tokenizers, on devices that need not be there."""

    def __init__(self, config: Config, devices: Sequence[Any]) -> None:
        """Starts nothing yet."""
        self.config, self._devices = config, devices

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices."""
        return sharding.make_mesh(**self.config.mesh, devices=self._devices)

    def load_student(self, model: str, *, adapters: bool = True, **options: Any) -> Student:
        """A model of random weights, which are never made."""
        options = {"init": "random", "tokenizer": None} | options
        return super().load_student(model, adapters=adapters, **options)


def job_steps(run: Run, names: Sequence[str]) -> Iterator[Step]:
    """The steps of a job, in their longest shapes."""
    if "train" in names:
        yield train_step(run)
    if run.config.weighting.weights == "learned":
        makers = {"fit": fit_step, "learn": learn_step}
        yield from (make(run) for name, make in makers.items() if name in names)
    if "fill" in names or "decode" in names:
        yield from generation_steps(run, names)


def train_step(run: Run) -> Step:
    """The student's step."""
    config, student, mesh = run.config.distill, run.student, run.mesh
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
    source, target = _lengths(run)
    if config.input_steps == "encoder":
        source += target
    if config.pack:
        source, target = 0, config.pack
    batch = batch_of(config.batch_size, source, target, mesh, packed=config.pack > 0)
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
        logits=_logits(rows, target, run),
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


def fit_step(run: Run) -> Step:
    """The answerer's step."""
    config, answerer = run.config.weighting, weigh_stage.answerer_of(run)
    params = answerer.abstract(run.mesh)
    optimizer = learn.answerer_optimizer(config.answerer_learning_rate, 1000)
    state = abstract_state(params, optimizer)["opt_state"]
    learner = weigh.make_learner(answerer, _embeddings(run), config)
    problems = _problems(run)
    masked = jax.ShapeDtypeStruct((), jnp.bool_)
    return Step(
        "fit",
        learn.make_fit_step(learner, optimizer),
        (params, state, problems, _key(), masked),
        {"parameters": params, "optimiser state": state, "batch": problems},
        gradients=params,
        beside=(params, _embeddings(run)),  # As they were before.
    )


def learn_step(run: Run) -> Step:
    """The generator's step."""
    config, answerer = run.config.weighting, weigh_stage.answerer_of(run)
    embeddings, problems = _embeddings(run), _problems(run)
    learner = weigh.make_learner(answerer, embeddings, config)
    optimizer = learn.generator_optimizer(config.learning_rate, config.clip_norm, config.steps)
    hidden = jax.ShapeDtypeStruct((*problems.rationale.shape, embeddings.shape[1]), jnp.float32)
    made = jax.eval_shape(learner.generator.init, _key(), hidden, problems.rationale_mask)
    whole = sharding.replicated(run.mesh)
    params = _placed(made["params"], jax.tree.map(lambda _: whole, made["params"]))
    state = abstract_state(params, optimizer)["opt_state"]
    answerer_params = answerer.abstract(run.mesh)
    return Step(
        "learn",
        learn.make_learn_step(learner, optimizer),
        (params, state, answerer_params, embeddings, problems, _key(), 0.5, 1.0),
        {
            "parameters": (params, answerer_params, embeddings),
            "optimiser state": state,
            "batch": problems,
        },
        gradients=params,
        beside=answerer_params,  # As they were before the answerer was fit.
    )


def generation_steps(run: Run, names: Sequence[str]) -> Iterator[Step]:
    """Those of `generate.Generator`, as they run at the end of training, with its state at hand."""
    config, student, mesh = run.config, run.student, run.mesh
    batch_size, (source, _) = config.eval.batch_size, _lengths(run)
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


def _lengths(run: Run) -> tuple[int, int]:
    """Of the longest prompt and the longest target."""
    config = run.config.student
    return round_up(config.max_question_tokens), round_up(config.max_target_tokens)


def _key() -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.key(0))


def _rows(rows: int, mesh: Mesh) -> int:
    """Rows of a batch on a device."""
    with sharding.use(mesh):
        return sharding.rows_of_a_device(rows)


def _logits(rows: int, target: int, run: Run) -> int:
    """Bytes of the logits of a chunk, of so many rows on a device."""
    positions = rows * losses.chunk_of(rows, target)
    return positions * run.student.config.vocab_size * 4 // run.mesh.shape["tensor"]


def _embeddings(run: Run) -> Any:
    config = run.student.config
    shape = config.vocab_size, config.d_model
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding.replicated(run.mesh))


def _problems(run: Run) -> Problems:
    """A batch for the answerer, as `MaskLearner.place` puts it on the mesh."""
    rows, (source, target) = run.config.weighting.batch_size, _lengths(run)
    where = sharding.whole_sharding((rows,), run.mesh)

    def pair(size: int) -> list[Any]:
        return [
            jax.ShapeDtypeStruct((rows, size), dtype, sharding=where)
            for dtype in (jnp.int32, jnp.bool_)
        ]

    rationale, mask = pair(target)
    arrays = [*pair(source), rationale, mask, mask, *pair(_ANSWER_TOKENS)]
    return Problems(*arrays)  # pyright: ignore
