"""The student's train step: optimiser, objective, and one jitted, donated, sharded update (Eq. 15).

The step is plain weighted cross entropy: which tokens count in a phase, and how much, comes with
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
from kpod_jax.training import costs, losses
from kpod_jax.training.forward import hidden_states
from kpod_jax.utils.errors import UserError

Params = Any
Batch = dict[str, jax.Array]
# (module, parameters, batch, dropout key or None) -> (what is minimised, Σ nll), both sums over the
# batch's rows: the step divides them by the batch's "divisor", or the number of supervised tokens.
Loss = Callable[[nn.Module, Params, Batch, jax.Array | None], tuple[jax.Array, jax.Array]]


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
        update = optax.chain(clip(config.clip_norm), update)
    return update


def clip(limit: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, by one factor for all.

    Its division of every gradient is not fused with what Adam does with them: on a CPU that is a
    pass over memory more.

    Args:
      limit: the largest norm of all gradients together.
    """

    def scaled(updates: Params, _: Params) -> Params:
        factor = limit / jnp.maximum(optax.global_norm(updates), limit)
        return jax.tree.map(lambda update: update * factor.astype(update.dtype), updates)

    return optax.stateless(scaled)


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
    group_size: int = 1,
) -> Callable[
    [dict[str, Any], Params, Batch, jax.Array], tuple[dict[str, Any], dict[str, jax.Array]]
]:
    """Makes the step: (state, frozen, batch, key) -> (state, metrics); the state is donated.

    The gradient is that of Σ weight · nll (Eq. 15) over the batch's "divisor", [B] float32 of one
    value: the mean number of supervised tokens of a batch (see `BatchSource`). It is NOT Σ weight,
    so that weights below 1 make the rationale's part of the loss smaller, and the answer's share of
    it larger, as Eq. 15 has it. The metrics "loss" and "token_loss" are means over the batch's own
    supervised tokens. All is the same whatever the micro-batches and the mesh. Frozen parameters
    have neither gradient nor state.

    Args:
      module: the student.
      optimizer: from `make_optimizer`.
      rate: for the metrics.
      micro_batches: parts that a batch is worked off in; divides its rows.
      dropout: with the module's own rates, seeded by `key` and the step.
      loss: what is minimised.
      group_size: so many neighbouring rows are never divided between micro-batches.
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
            groups = x.reshape(-1, micro_batches, group_size, *x.shape[1:])
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
        divisor = jnp.max(batch["divisor"])  # One value, whichever device has its rows.
        grads = jax.tree.map(lambda g: g / divisor, grads)
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
    whole = sharding.replicated(jax.tree.leaves(params)[0].sharding.mesh)

    def placed(leaf: jax.ShapeDtypeStruct, param: Any = None) -> jax.ShapeDtypeStruct:
        # Adafactor keeps vectors for a matrix.
        where = param.sharding if param is not None and param.shape == leaf.shape else whole
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    state = jax.eval_shape(functools.partial(_first_state, optimizer), params)
    return {
        "params": jax.tree.map(placed, state["params"], params),
        "opt_state": optax.tree_map_params(
            optimizer, placed, state["opt_state"], params, transform_non_params=placed
        ),
        "step": placed(state["step"]),
    }


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
