"""Token weights that depend on the tokens before a token, not on the token itself.

A weighted cross entropy favors continuations with high weights: at a context c the student learns
q(t | c) ∝ p(t | c) E[w | t, c]. If the weight is a function of c alone, q is p.

Letters: M rationale tokens of all examples together.
"""

import numpy as np

from kpod_jax.data.records import Ragged

_PRIOR = 5.0  # Occurrences with which a longer context counts as much as the shorter one.


def weights_by_context(weights: Ragged, targets: Ragged, length: int) -> Ragged:
    """Replaces each weight by the mean weight of all tokens that follow the same `length` tokens.

    Rare contexts are interpolated with shorter ones, as in an n-gram language model.

    Args:
      weights: w_j of every rationale token, N slices.
      targets: ids, N slices that begin with the rationale's tokens.
      length: tokens in a context; 0 leaves the weights unchanged.

    Returns:
      N slices of float32.
    """
    if length == 0:
        return weights
    values_M = weights.values.astype(np.float64)
    ids_M = np.concatenate([targets[i][:n] for i, n in enumerate(weights.lengths)]).astype(np.int64)
    place_M = np.arange(len(ids_M))
    start_M = np.repeat(weights.offsets[:-1], weights.lengths)
    context_M = np.zeros(len(ids_M), np.int64)
    mean_M = np.full(len(ids_M), values_M.mean())
    for back in range(1, length + 1):
        before_M = np.where(place_M - back >= start_M, ids_M[place_M - back], -1)
        keys_M = context_M * (ids_M.max() + 2) + before_M + 1
        _, context_M, counts = np.unique(keys_M, return_inverse=True, return_counts=True)
        sums = np.bincount(context_M, values_M)
        mean_M = (sums[context_M] + _PRIOR * mean_M) / (counts[context_M] + _PRIOR)
    return Ragged(mean_M.astype(np.float32), weights.offsets)
