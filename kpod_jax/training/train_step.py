"""The student's train step: optimizer, objective and one jitted, donated, sharded update (Eq. 15).

The step minimizes a weighted cross entropy: which tokens count in a phase, and how much, comes with
the batch.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from kpod_jax.config.defaults import Config
from kpod_jax.models import layout
from kpod_jax.parallel import sharding
from kpod_jax.training import costs, divergence, losses
from kpod_jax.training.forward import hidden_states
from kpod_jax.utils.errors import UserError

Params = Any
Batch = dict[str, jax.Array]
# (module, parameters, batch, dropout key or None) -> (objective, Σ nll), both summed over the
# batch's rows. The step divides the gradient by the batch's "divisor", and the metrics by the
# number of supervised tokens.
Loss = Callable[[nn.Module, Params, Batch, jax.Array | None], tuple[jax.Array, jax.Array]]


def learning_rate(config: Config, total_steps: int) -> optax.Schedule:
    """Returns the schedule: linear warm-up, then constant, linear or cosine."""
    warmup = min(config.warmup_steps, max(0, total_steps - 1))
    decay_steps = max(1, total_steps - warmup)
    after = {
        "constant": optax.constant_schedule(config.learning_rate),
        "linear": optax.linear_schedule(config.learning_rate, 0.0, decay_steps),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, decay_steps),
    }[config.decay]
    start = optax.linear_schedule(0.0, config.learning_rate, max(1, warmup))
    return optax.join_schedules([start, after], [warmup])


def make_optimizer(config: Config, total_steps: int) -> optax.GradientTransformation:
    """Returns the configured optimizer.

    Args:
      config: `distill` of the configuration.
      total_steps: length of the learning rate's decay.
    """
    rate = learning_rate(config, total_steps)
    if config.optimizer == "adafactor":
        update = optax.adafactor(rate, weight_decay_rate=config.weight_decay or None)
    elif config.optimizer == "adamw":
        update = optax.adamw(rate, weight_decay=config.weight_decay)
    else:
        update = optax.adam(rate)
    if config.clip_norm:
        update = optax.chain(clip(config.clip_norm), update)
    return update


def clip(limit: float) -> optax.GradientTransformation:
    """Clips gradients as `optax.clip_by_global_norm` does, with a single factor for all of them.

    Optax divides every gradient, which is not fused with Adam's update: on a CPU that costs another
    pass over memory.

    Args:
      limit: maximum norm of all gradients together.
    """

    def scale(updates: Params, _: Params) -> Params:
        factor = limit / jnp.maximum(optax.global_norm(updates), limit)
        return jax.tree.map(lambda update: update * factor.astype(update.dtype), updates)

    return optax.stateless(scale)


def cross_entropy(
    module: nn.Module,
    params: Params,
    batch: Batch,
    dropout_key: jax.Array | None = None,
    *,
    token_loss: losses.TokenLoss = losses.negative_log_likelihood,
) -> tuple[jax.Array, jax.Array]:
    """Returns Σ weight · nll (Eq. 15) and Σ nll, a `Loss`; `token_loss` may replace nll."""
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
    """Returns the loss to minimize under `distill.loss`.

    Args:
      name: name of the token loss, see `losses.token_loss_of`.
      objective: the method's loss.

    Raises:
      UserError: the loss is not usable, or neither it nor the method's loss is cross entropy.
    """
    if name == losses.CROSS_ENTROPY:
        return objective
    if objective is not cross_entropy:
        raise UserError(
            f"distill.loss={name!r}: the method already defines a loss; expected "
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
    group_size: int = 1,
    skip_nonfinite: bool = False,
) -> Callable[
    [dict[str, Any], Params, Batch, jax.Array], tuple[dict[str, Any], dict[str, jax.Array]]
]:
    """Builds the step: (state, frozen, batch, key) -> (state, metrics); it donates the state.

    The gradient is that of Σ weight · nll (Eq. 15) divided by the batch's "divisor", a constant [B]
    float32: the mean number of supervised tokens per batch (see `BatchSource`). The divisor is NOT
    Σ weight, so weights below 1 reduce the rationale's part of the loss and raise the answer's
    fraction of it, as in Eq. 15. The metrics "loss" and "token_loss" are means over the batch's
    supervised tokens. Results do not depend on the micro-batches or the mesh. Frozen parameters
    have neither gradient nor optimizer state.

    Args:
      module: the student.
      optimizer: from `make_optimizer`.
      rate: learning rate, for the metrics.
      micro_batches: number of parts that a batch is split into; divides its rows.
      dropout: enable dropout with the module's rates, seeded by `key` and the step.
      loss: what to minimize.
      group_size: number of adjacent rows that are never split across micro-batches.
      skip_nonfinite: leave parameters and moments as they are if the loss or the gradient is not
        finite; counts of steps go on.
    """

    def compute_loss(
        trained: Params, frozen: Params, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        params = layout.combine(trained, frozen)
        return loss(module, params, batch, key if dropout else None)

    gradient = jax.value_and_grad(compute_loss, has_aux=True)

    def sums(
        params: Params, frozen: Params, batch: Batch, key: jax.Array
    ) -> tuple[Any, jax.Array, jax.Array]:
        """Returns gradient and value of Σ weight · nll, and Σ nll."""
        if micro_batches == 1:
            (total, nll_sum), grads = gradient(params, frozen, batch, key)
            return grads, total, nll_sum

        def deal(x: jax.Array) -> jax.Array:
            """Deals out rows in turn, so that every device keeps its rows in each part."""
            groups = x.reshape(-1, micro_batches, group_size, *x.shape[1:])
            return jnp.moveaxis(groups, 1, 0).reshape(micro_batches, -1, *x.shape[1:])

        parts = jax.tree.map(deal, batch)

        def add(carry, part):
            index, batch = part
            part_key = jax.random.fold_in(key, index)
            (total, nll_sum), grads = gradient(params, frozen, batch, part_key)
            return jax.tree.map(jnp.add, carry, (grads, total, nll_sum)), None

        zeros = jax.tree.map(jnp.zeros_like, params), jnp.zeros(()), jnp.zeros(())
        return jax.lax.scan(add, zeros, (jnp.arange(micro_batches), parts))[0]

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(
        state: dict[str, Any], frozen: Params, batch: Batch, key: jax.Array
    ) -> tuple[dict[str, Any], dict[str, jax.Array]]:
        step, params = state["step"], state["params"]
        count = jnp.maximum(1.0, jnp.sum(batch["supervised"]).astype(jnp.float32))
        grads, total, nll_sum = sums(params, frozen, batch, jax.random.fold_in(key, step))
        divisor = jnp.max(batch["divisor"])  # All rows have the same value.
        grads = jax.tree.map(lambda g: g / divisor, grads)
        updates, opt_state = optimizer.update(grads, state["opt_state"], params)
        metrics = {
            "loss": total / count,
            "token_loss": nll_sum / count,
            "gradient_norm": optax.global_norm(grads),
            "supervised_tokens": count,
            "learning_rate": jnp.asarray(rate(step), jnp.float32),
        }
        new = {"params": optax.apply_updates(params, updates), "opt_state": opt_state}
        if skip_nonfinite:
            measured = jnp.stack([metrics[name] for name in divergence.MEASURED])
            new = _new_if(jnp.isfinite(measured).all(), new, state)
        return new | {"step": step + 1}, metrics

    return train_step


def _new_if(accepted: jax.Array, new: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Returns the new state, or the one before with the new counts of steps."""
    return {
        name: jax.tree.map(
            lambda new, old: (
                jnp.where(accepted, new, old) if jnp.issubdtype(new.dtype, jnp.inexact) else new
            ),
            tree,
            state[name],
        )
        for name, tree in new.items()
    }


def abstract_state(params: Params, optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """Returns shapes, dtypes and shardings of `start_state`'s result, as jax.ShapeDtypeStructs.

    Optimizer state with a parameter's shape is sharded like the parameter; the rest is replicated.

    Args:
      params: the trained parameters, on a mesh, concrete or abstract.
      optimizer: from `make_optimizer`.
    """
    replicated = sharding.replicated(jax.tree.leaves(params)[0].sharding.mesh)

    def place(leaf: jax.ShapeDtypeStruct, param: Any = None) -> jax.ShapeDtypeStruct:
        # Adafactor keeps vectors for a matrix.
        placement = (
            param.sharding if param is not None and param.shape == leaf.shape else replicated
        )
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement)

    state = jax.eval_shape(functools.partial(_init_state, optimizer), params)
    return {
        "params": jax.tree.map(place, state["params"], params),
        "opt_state": optax.tree_map_params(
            optimizer, place, state["opt_state"], params, transform_non_params=place
        ),
        "step": place(state["step"]),
    }


def start_state(params: Params, optimizer: optax.GradientTransformation) -> dict[str, Any]:
    """Returns the state before the first step; donates the parameters.

    `abstract_state` sets the shardings: left to itself, the compiler would replicate the
    optimizer's zeros.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(params, optimizer))
    start = functools.partial(_init_state, optimizer)
    return jax.jit(start, donate_argnums=0, out_shardings=shardings)(params)


def _init_state(optimizer: optax.GradientTransformation, params: Params) -> dict[str, Any]:
    opt_state = optimizer.init(params)
    return {"params": params, "opt_state": opt_state, "step": jnp.zeros((), jnp.int32)}


def model_flops(module: nn.Module, params: Params, frozen: Params) -> Callable[[Batch], float]:
    """Returns a function from a batch to its step's FLOPs: forward, and backward where trained.

    Includes attention and logits, but not what is recomputed to save memory, whether by `remat` or
    by the loss, which computes logits twice. Each shape is counted once.
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
