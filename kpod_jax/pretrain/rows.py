"""Rows of token ids, batches of rows, and the training loop of the student."""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from kpod_jax.models.t5 import T5
from kpod_jax.training import losses


class Row(NamedTuple):
    """Tokens of a source and its target, without EOS.

    Attributes:
      source: source tokens.
      target: target tokens.
      supervised: whether each target token is supervised; None: all, and EOS.
    """

    source: list[int]
    target: list[int]
    supervised: list[bool] | None = None


class Shape(NamedTuple):
    """The shape of a batch: rows, source tokens and target tokens, EOS included."""

    rows: int
    source: int
    target: int


def batch_of(rows: Sequence[Row], shape: Shape, eos_id: int) -> dict[str, np.ndarray]:
    """Returns source, inputs and target int32, padded with 0, and bool masks of source and loss.

    Every source and target ends with EOS; long ones are truncated.
    """
    source = np.zeros((shape.rows, shape.source), np.int32)
    target = np.zeros((shape.rows, shape.target), np.int32)
    supervised = np.zeros(target.shape, bool)
    for i, row in enumerate(rows):
        left, right = row.source[: shape.source - 1], row.target[: shape.target - 1]
        source[i, : len(left) + 1] = [*left, eos_id]
        target[i, : len(right) + 1] = [*right, eos_id]
        flags = (row.supervised or [True] * len(right))[: len(right)]
        supervised[i, : len(flags)] = flags
        supervised[i, len(right)] = row.supervised is None
    inputs = np.roll(target, 1, axis=1)
    inputs[:, 0] = 0
    return {
        "source": source,
        "source_mask": source > 0,
        "inputs": inputs,
        "target": target,
        "target_mask": supervised,
    }


def loss_of(module: T5, params: dict, batch: dict[str, jax.Array]) -> jax.Array:
    """Returns the mean cross entropy of a batch's supervised tokens, in nats."""
    variables = {"params": params}
    hidden: Any = module.apply(variables, batch["source"], batch["source_mask"], batch["inputs"])
    nll = losses.token_losses(
        hidden,
        batch["target"],
        batch["target_mask"],
        lambda h: module.apply(variables, h, method="logits"),  # pyright: ignore
    )
    return nll.sum() / batch["target_mask"].sum()


def train(
    module: T5,
    params: dict,
    kinds: Sequence[str],
    batch: Callable[[str, int], dict[str, np.ndarray]],
    learning_rate: float,
) -> dict:
    """Minimizes the cross entropy of the targets with Adam, warmup and cosine decay.

    Args:
      module: the model.
      params: initial parameters; they are donated.
      kinds: kind of rows for each step.
      batch: returns a batch, given kind and step.
      learning_rate: peak learning rate.
    """
    steps = len(kinds)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(100, steps), steps + 1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, state, batch):
        value, gradient = jax.value_and_grad(functools.partial(loss_of, module))(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state = optimizer.init(params)
    recent: dict[str, list[jax.Array]] = collections.defaultdict(list)
    for step, kind in enumerate(kinds):
        params, state, loss = train_step(params, state, batch(kind, step))
        recent[kind].append(loss)
        if step % 100 == 99 or step == steps - 1:
            means = {
                kind: round(float(jnp.stack(values).mean()), 3)
                for kind, values in sorted(recent.items())
            }
            logging.info("step %d of %d, nats per token: %s", step + 1, steps, means)
            recent.clear()
    return params
