"""How difficult each step of a rationale is for the student before distillation (Eq. 8).

Letters: N examples, M rationale tokens of all examples together.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import numpy as np
from jax.sharding import Mesh

from kpod_jax.data.batches import BatchSource
from kpod_jax.data.records import Ragged, offsets_of
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.training import forward


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
    batches = forward.target_losses_of_all(module, params, source, mesh, batch_size=batch_size)
    for index, values, _ in batches:
        for row, i in enumerate(index):
            if i >= 0:
                result[i] = values[row, : tokenized.rationale_lengths[i]]
        progress(int((index >= 0).sum()))
    return Ragged.from_list(result, np.float32)


def step_difficulty(nll: Ragged, weights: Ragged | None, tokenized: TokenizedSet) -> Ragged:
    """d_k = Σ_j ŵ_j nll_j over the tokens of step k; ŵ is the softmax of w within it (Eq. 8).

    Args:
      nll: of every rationale token, N slices, nats.
      weights: w_j, likewise; None is the same weight for all tokens of a step.
      tokenized: the examples.

    Returns:
      N slices of n_i float32 values, nats.
    """
    offsets = offsets_of(tokenized.num_steps)
    steps = [tokenized.steps[i][:n] for i, n in enumerate(tokenized.rationale_lengths.tolist())]
    step_M = np.concatenate([s + offset for s, offset in zip(steps, offsets, strict=False)])
    w_M = np.zeros(len(step_M)) if weights is None else weights.values.astype(np.float64)
    exp_M = np.exp(w_M)  # w is in (0, 1): no overflow to guard against.
    total = np.bincount(step_M, exp_M, minlength=offsets[-1])
    value = np.bincount(step_M, exp_M * nll.values, minlength=offsets[-1])
    return Ragged((value / total).astype(np.float32), offsets)
