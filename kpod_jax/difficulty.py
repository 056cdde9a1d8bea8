"""How difficult each step of a rationale is for the student before distillation (Eq. 8).

Letters: N examples, M rationale tokens of all examples together, B rows, S and U lengths.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from kpod_jax import losses, sharding
from kpod_jax.data.batches import Batch, BatchSource
from kpod_jax.data.records import Ragged
from kpod_jax.data.tokens import TokenizedSet


def rationale_losses(
    module: nn.Module,
    params: Any,
    source: BatchSource,
    tokenized: TokenizedSet,
    mesh: Mesh,
    *,
    batch_size: int,
    progress: Callable[[int], None] = lambda examples: None,
) -> Ragged:
    """-log P(r_j | r_<j, x; θs) of every rationale token, in one teacher-forced pass.

    Args:
      module: the student.
      params: θs.
      source: of the examples of `tokenized`.
      tokenized: the examples.
      mesh: that the parameters lie on.
      batch_size: rows at a time.
      progress: told the number of examples done after each batch.

    Returns:
      N slices of float32, nats, one value a rationale token.
    """
    result: list[np.ndarray] = [np.zeros(0, np.float32)] * len(tokenized)
    for index, values, _ in _target_losses(module, params, source, mesh, batch_size):
        for row, i in enumerate(index):
            if i >= 0:
                result[i] = values[row, : tokenized.rationale_lengths[i]]
        progress(int((index >= 0).sum()))
    return Ragged.from_list(result, np.float32)


def mean_target_loss(
    module: nn.Module, params: Any, source: BatchSource, mesh: Mesh, *, batch_size: int
) -> float:
    """-log P of a target token, nats, on average over those of all rationales and answers.

    Args are those of `rationale_losses`.
    """
    total, count = 0.0, 0
    for index, values, supervised in _target_losses(module, params, source, mesh, batch_size):
        counts = supervised & (index >= 0)[:, None]
        total, count = total + float(values[counts].sum(dtype=np.float64)), count + counts.sum()
    return total / int(count)


def _target_losses(
    module: nn.Module, params: Any, source: BatchSource, mesh: Mesh, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each batch of all examples: numbers [B], -1 for padding, losses and supervised [B, U]."""
    losses_of = _batch_losses(module, mesh)
    with sharding.use(mesh):
        for batch in source.in_order(batch_size):
            index, supervised = batch.pop("index"), batch["supervised"]
            yield (
                index,
                np.asarray(losses_of(params, sharding.place_whole(batch, mesh))),
                supervised,
            )


@functools.lru_cache(maxsize=4)
def _batch_losses(module: nn.Module, mesh: Mesh) -> Callable[[Any, Any], jax.Array]:
    """Compiled once, however often losses are asked for."""
    # A whole copy on every device, for every process to read.
    return jax.jit(
        lambda params, batch: token_losses(module, params, batch),
        out_shardings=sharding.replicated(mesh),
    )


def token_losses(module: nn.Module, params: Any, batch: Batch | dict[str, jax.Array]) -> jax.Array:
    """[B, U] -log P of every supervised target token under teacher forcing; 0 elsewhere."""
    hidden, head = hidden_states(module, params, batch)
    return losses.token_losses(hidden, batch["targets"], batch["supervised"], head)  # pyright: ignore


def hidden_states(
    module: nn.Module,
    params: Any,
    batch: Batch | dict[str, jax.Array],
    *,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """The decoder's output [B, U, D] under teacher forcing, and the head, [..., D] -> [..., V]."""
    variables = {"params": params}
    packed: dict[str, Any] = {"segments_BxU": batch["segments"]} if "segments" in batch else {}
    hidden: Any = module.apply(
        variables,
        batch["input_ids"],
        batch["input_mask"],
        batch["decoder_input_ids"],
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
        **packed,
    )
    head: Any = functools.partial(module.apply, variables, method="logits")
    return hidden, head


def step_difficulty(nll: Ragged, weights: Ragged | None, tokenized: TokenizedSet) -> Ragged:
    """d_k = Σ_j ŵ_j nll_j over the tokens of step k; ŵ is the softmax of w within it (Eq. 8).

    Args:
      nll: of every rationale token, N slices, nats.
      weights: w_j, likewise; None is the same weight for all tokens of a step.
      tokenized: the examples.

    Returns:
      N slices of n_i float32 values, nats.
    """
    num_steps_N = tokenized.num_steps.astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(num_steps_N)])
    steps = [tokenized.steps[i][:n] for i, n in enumerate(tokenized.rationale_lengths.tolist())]
    step_M = np.concatenate([s + offset for s, offset in zip(steps, offsets, strict=False)])
    w_M = np.zeros(len(step_M)) if weights is None else weights.values.astype(np.float64)
    exp_M = np.exp(w_M)  # w is in (0, 1): no overflow to guard against.
    total = np.bincount(step_M, exp_M, minlength=offsets[-1])
    value = np.bincount(step_M, exp_M * nll.values, minlength=offsets[-1])
    return Ragged((value / total).astype(np.float32), offsets)
