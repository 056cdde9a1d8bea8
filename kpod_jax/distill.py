"""The student's training: one jitted, donated, sharded step, and the loop around it (Eq. 15).

The step is plain weighted cross entropy: which tokens count at a stage, and how much, comes with
the batch. A run is a function of its configuration and data, so one that was killed goes on from
its last checkpoint to the same bits.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh

from kpod_jax import costs, losses, processes, sharding, watch
from kpod_jax.checkpoint import Checkpoints
from kpod_jax.configuration import Config
from kpod_jax.data.batches import BatchSource
from kpod_jax.difficulty import hidden_states
from kpod_jax.errors import UserError
from kpod_jax.metrics import MetricsWriter, OneStepLate
from kpod_jax.models import layout
from kpod_jax.progress import Progress

STAGE = "distill"
Params = Any
Batch = dict[str, jax.Array]
# (module, parameters, batch, dropout key or None) -> (what is minimised, Σ nll), both sums over the
# batch's rows: the step divides them by the number of supervised tokens of the whole batch.
Loss = Callable[[nn.Module, Params, Batch, jax.Array | None], tuple[jax.Array, jax.Array]]


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


def learning_rate(config: Config, total_steps: int) -> optax.Schedule:
    """Linear warm-up, then constant, linear or cosine."""
    warmup = min(config.warmup_steps, max(0, total_steps - 1))
    rest = max(1, total_steps - warmup)
    after = {
        "constant": optax.constant_schedule(config.learning_rate),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest),
    }[config.decay]
    start = optax.linear_schedule(0.0, config.learning_rate, max(1, warmup))
    return optax.join_schedules([start, after], [warmup])


def make_optimizer(config: Config, total_steps: int) -> optax.GradientTransformation:
    """The optimiser of the configuration.

    Args:
      config: `distill` of the configuration.
      total_steps: for the learning rate's decay.
    """
    rate = learning_rate(config, total_steps)
    if config.optimizer == "adafactor":
        update = optax.adafactor(rate, weight_decay_rate=config.weight_decay or None)
    elif config.optimizer == "adamw":
        update = optax.adamw(rate, weight_decay=config.weight_decay)
    else:
        update = optax.adam(rate)
    if config.clip_norm:
        update = optax.chain(optax.clip_by_global_norm(config.clip_norm), update)
    return update


def cross_entropy(
    module: nn.Module,
    params: Params,
    batch: Batch,
    dropout_key: jax.Array | None = None,
    *,
    token_loss: losses.TokenLoss = losses.negative_log_likelihood,
) -> tuple[jax.Array, jax.Array]:
    """Σ weight · nll (Eq. 15) and Σ nll: a `Loss`; of another token loss likewise."""
    hidden, head = hidden_states(module, params, batch, dropout_key=dropout_key)
    total, nll = losses.weighted_token_losses(
        hidden,
        batch["targets"],
        batch["supervised"],
        batch["loss_weights"],
        head,
        token_loss=token_loss,
    )
    return total, jnp.sum(nll)


def loss_of(name: str, objective: Loss = cross_entropy) -> Loss:
    """What is minimised under `distill.loss`.

    Args:
      name: of the token loss, see `losses.token_loss_of`.
      objective: of the method.

    Raises:
      UserError: the loss cannot be used, or both it and the method's are other than cross entropy.
    """
    if name == losses.CROSS_ENTROPY:
        return objective
    if objective is not cross_entropy:
        raise UserError(
            f"distill.loss={name!r}: the method has a loss of its own; expected "
            f"{losses.CROSS_ENTROPY}."
        )
    return functools.partial(cross_entropy, token_loss=losses.token_loss_of(name))


def make_train_step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    rate: optax.Schedule,
    *,
    micro_batches: int = 1,
    dropout: bool = False,
    loss: Loss = cross_entropy,
    rows_together: int = 1,
) -> Callable[
    [dict[str, Any], Params, Batch, jax.Array], tuple[dict[str, Any], dict[str, jax.Array]]
]:
    """Makes the step: (state, frozen, batch, key) -> (state, metrics); the state is donated.

    The loss is Σ weight · nll over the number of supervised tokens of the whole batch (Eq. 15),
    whatever the micro-batches and the mesh. Frozen parameters have neither gradient nor state.

    Args:
      module: the student.
      optimizer: from `make_optimizer`.
      rate: for the metrics.
      micro_batches: parts that a batch is worked off in; divides its rows.
      dropout: with the module's own rates, seeded by `key` and the step.
      loss: what is minimised.
      rows_together: so many neighbouring rows are never divided between micro-batches.
    """

    def weighted(
        trained: Params, frozen: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        params = layout.combine(trained, frozen)
        return loss(module, params, batch, key if dropout else None)

    gradient = jax.value_and_grad(weighted, has_aux=True)

    def sums(
        params: Params, frozen: Params, batch: Batch, key: jax.Array
    ) -> tuple[Any, jax.Array, jax.Array]:
        """Gradient and value of Σ weight · nll, and Σ nll."""
        if micro_batches == 1:
            (total, plain), grads = gradient(params, frozen, batch, key)
            return grads, total, plain

        def dealt(x: jax.Array) -> jax.Array:
            """Rows are dealt out in turn, so that every device keeps its share of each part."""
            groups = x.reshape(-1, micro_batches, rows_together, *x.shape[1:])
            return jnp.moveaxis(groups, 1, 0).reshape(micro_batches, -1, *x.shape[1:])

        parts = jax.tree.map(dealt, batch)

        def add(carry, part):
            number, batch = part
            key_of_part = jax.random.fold_in(key, number)
            (total, plain), grads = gradient(params, frozen, batch, key_of_part)
            return jax.tree.map(jnp.add, carry, (grads, total, plain)), None

        zeros = jax.tree.map(jnp.zeros_like, params), jnp.zeros(()), jnp.zeros(())
        return jax.lax.scan(add, zeros, (jnp.arange(micro_batches), parts))[0]

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(
        state: dict[str, Any], frozen: Params, batch: Batch, key: jax.Array
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        step, params = state["step"], state["params"]
        count = jnp.maximum(1.0, jnp.sum(batch["supervised"]).astype(jnp.float32))
        grads, total, plain = sums(params, frozen, batch, jax.random.fold_in(key, step))
        grads = jax.tree.map(lambda g: g / count, grads)
        updates, opt_state = optimizer.update(grads, state["opt_state"], params)
        metrics = {
            "loss": total / count,
            "token_loss": plain / count,
            "gradient_norm": optax.global_norm(grads),
            "supervised_tokens": count,
            "learning_rate": jnp.asarray(rate(step), jnp.float32),
        }
        params = optax.apply_updates(params, updates)
        return {"params": params, "opt_state": opt_state, "step": step + 1}, metrics

    return train_step


def abstract_state(params: Params, optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """Shapes, dtypes and shardings of `start_state`'s result: a tree of jax.ShapeDtypeStruct.

    What the optimiser keeps for a parameter lies as the parameter does; the rest is whole on every
    device.

    Args:
      params: those that are trained, on a mesh, concrete or abstract.
      optimizer: from `make_optimizer`.
    """
    keystr = jax.tree_util.keystr
    by_path = {keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    whole = sharding.replicated(next(iter(by_path.values())).sharding.mesh)

    def placed(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        where = whole
        for start in range(len(path)):  # An entry of the state ends like its parameter's path.
            param = by_path.get(keystr(path[start:]))
            if param is not None and param.shape == leaf.shape:
                where = param.sharding
                break
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    state = jax.eval_shape(functools.partial(_first_state, optimizer), params)
    return jax.tree_util.tree_map_with_path(placed, state)


def start_state(params: Params, optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """The state before the first step; the parameters are donated to it.

    Where its parts lie is said by `abstract_state`: left to itself the compiler would copy the
    optimiser's zeros to every device.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(params, optimizer))
    start = functools.partial(_first_state, optimizer)
    return jax.jit(start, donate_argnums=0, out_shardings=shardings)(params)


def _first_state(optimizer: optax.GradientTransformation, params: Params) -> dict[str, Any]:
    opt_state = optimizer.init(params)
    return {"params": params, "opt_state": opt_state, "step": jnp.zeros((), jnp.int32)}


def model_flops(module: nn.Module, params: Params, frozen: Params) -> Callable[[Batch], float]:
    """From a batch to the FLOPs that a step on it needs: forward, and backward where trained.

    Attention and logits are in them; what is computed again to save memory is not, be it by `remat`
    or by the loss, which makes logits twice. A shape is counted once.
    """
    plain = module.clone(remat="none", attention="xla")
    params, frozen = jax.eval_shape(lambda: (params, frozen))

    def loss(trained: Params, frozen: Params, batch: Batch) -> jax.Array:
        hidden, head = hidden_states(plain, layout.combine(trained, frozen), batch)
        return jnp.sum(head(hidden))

    @functools.cache
    def count(shapes: tuple[tuple[str, tuple[int, ...], Any], ...]) -> float:
        batch = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape, dtype in shapes}
        return costs.flops(jax.make_jaxpr(jax.grad(loss))(params, frozen, batch))

    return lambda batch: count(tuple((k, v.shape, v.dtype) for k, v in sorted(batch.items())))


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
        late, window, sizes = OneStepLate(), watch.Window(), {}
        tracer = watch.Tracer(workdir / "profile", first + 1, watching.profile_steps)
        with (
            MetricsWriter(workdir, STAGE, restored_step=first if first else None) as writer,
            Progress(total, "Distilling", initial=first) as progress,
            processes.listening() as is_told_to_end,
            watch.Watchdog(watching.hang_seconds, "distill") as watchdog,
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
