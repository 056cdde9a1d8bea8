"""The student under teacher forcing: its output and the loss of every target token.

Letters: B rows, U target positions, D width, V vocabulary.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from kpod_jax.data.batches import Batch, BatchSource
from kpod_jax.data.records import Ragged, offsets_of
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.parallel import sharding
from kpod_jax.training import losses


def hidden_states(
    module: nn.Module,
    params: Any,
    batch: Batch | dict[str, jax.Array],
    *,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """Returns the teacher-forced decoder output [B, U, D] and the head, [..., D] -> [..., V].

    Args:
      module: the student.
      params: its parameters.
      batch: from a `BatchSource`.
      dropout_key: enables the model's dropout.
    """
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


def target_losses(module: nn.Module, params: Any, batch: Batch | dict[str, jax.Array]) -> jax.Array:
    """Returns -log P of every supervised target token, [B, U] float32 in nats; 0 elsewhere."""
    hidden, head = hidden_states(module, params, batch)
    return losses.token_losses(hidden, batch["targets"], batch["supervised"], head)  # pyright: ignore


def target_losses_of_all(
    module: nn.Module, params: Any, source: BatchSource, mesh: Mesh, *, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (indices, losses, supervised) for each batch, over all examples.

    Indices are [B], -1 for padding; the other two are [B, U].

    Args:
      module: the student.
      params: its parameters.
      source: source of the examples.
      mesh: mesh of the parameters.
      batch_size: rows per batch.
    """
    compute_losses = compile_target_losses(module, mesh)
    with sharding.use(mesh):
        for batch in source.in_order(batch_size):
            index, supervised = batch.pop("index"), batch["supervised"]
            yield (
                index,
                np.asarray(compute_losses(params, sharding.place_global(batch, mesh))),
                supervised,
            )


def mean_target_loss(
    module: nn.Module, params: Any, source: BatchSource, mesh: Mesh, *, batch_size: int
) -> float:
    """Returns the mean -log P of a target token, in nats, over all rationales and answers.

    Args: see `target_losses_of_all`.
    """
    total, count = 0.0, 0
    batches = target_losses_of_all(module, params, source, mesh, batch_size=batch_size)
    for index, values, supervised in batches:
        mask = supervised & (index >= 0)[:, None]
        total, count = total + float(values[mask].sum(dtype=np.float64)), count + mask.sum()
    return total / int(count)


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
    """Computes -log P(r_j | r_<j, x; θs) of every rationale token in one teacher-forced pass.

    Args:
      module: the student.
      params: θs.
      source: batches of the examples in `tokenized`.
      tokenized: the examples.
      mesh: the mesh of the parameters.
      batch_size: rows per batch.
      progress: called after each batch with the number of examples in it.

    Returns:
      N slices of float32, in nats, one value per rationale token.
    """
    offsets = offsets_of(tokenized.rationale_lengths)
    result = Ragged(np.zeros(offsets[-1], np.float32), offsets)
    batches = target_losses_of_all(module, params, source, mesh, batch_size=batch_size)
    for index, values, _ in batches:
        for row, i in enumerate(index):
            if i >= 0:
                result[i][:] = values[row, : tokenized.rationale_lengths[i]]
        progress(int((index >= 0).sum()))
    return result


@functools.lru_cache(maxsize=4)
def compile_target_losses(module: nn.Module, mesh: Mesh) -> Callable[[Any, Any], jax.Array]:
    """Returns the jitted `target_losses`, compiled once for all calls."""
    # Replicated, so that every process can read the result.
    return jax.jit(
        lambda params, batch: target_losses(module, params, batch),
        out_shardings=sharding.replicated(mesh),
    )
