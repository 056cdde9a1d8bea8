"""The quantities of a schedule: remaining difficulty, its target, and the value of a selection.

c_i(t) is the number of leading steps of example i that are input, not output, in phase t; d_j is
the difficulty of its j-th step (Eq. 8). All functions take whole data sets at once.

Letters: N examples, n requested examples, M steps in total, K question clusters.
"""

import numpy as np

from kpod_jax.data.records import Ragged
from kpod_jax.utils.errors import UserError

# 2 ** _MIN_EXPONENT and its inverse are normal numbers.
_MIN_EXPONENT = -1000


def on_exact_grid(difficulty: Ragged) -> Ragged:
    """Rounds difficulties down so that float64 sums them exactly, in any order.

    Sums are compared with budgets. If they depended on the order of the examples, so would the
    schedule, and a rounding error could exceed a budget. Every value becomes a multiple of a power
    of two. That power is small enough to lose nothing that matters, at most
    `M * max(difficulty) * 2^-51` or 2^-1000, and large enough that the sum of all M values stays
    below 2^53 times the power.

    Args:
      difficulty: d_j of every step, in nats: N slices of n_i values.

    Returns:
      The same slices, float64. The function is idempotent.

    Raises:
      UserError: if a value is negative, NaN or infinite; the message names the example.
    """
    values_M = _checked_values(difficulty)
    if values_M.size == 0 or values_M.max() == 0:
        return Ragged(values_M, difficulty.offsets)
    exponent = int(np.frexp(values_M.max())[1]) + int(np.frexp(float(values_M.size))[1]) - 53
    grid = float(np.ldexp(1.0, max(exponent, _MIN_EXPONENT)))
    # Exact, because `grid` is a power of two.
    rounded_M = values_M / grid
    np.floor(rounded_M, out=rounded_M)
    rounded_M *= grid
    return Ragged(rounded_M, difficulty.offsets)


def remaining_difficulty(difficulty: Ragged, start_steps_N: np.ndarray) -> np.ndarray:
    """Computes h_i = Σ_{j > c_i} d_j, the total difficulty of the output steps (Eq. 9).

    Args:
      difficulty: d_j of every step, N slices of n_i values.
      start_steps_N: c_i, integers with 0 <= c_i <= n_i.

    Returns:
      [N] float64.
    """
    example_M = np.repeat(np.arange(len(difficulty)), difficulty.lengths)
    is_output_M = np.arange(len(example_M)) >= (difficulty.offsets[:-1] + start_steps_N)[example_M]
    return np.bincount(example_M, difficulty.values * is_output_M, minlength=len(difficulty))


def next_step_difficulty(
    difficulty: Ragged, start_steps_N: np.ndarray, able_n: np.ndarray
) -> np.ndarray:
    """Returns δ_i = d_{c_i}, the difficulty added by one more output step (Δs = 1, Eq. 11).

    Args:
      difficulty: d_j of every step, N slices of n_i values.
      start_steps_N: c_i, integers with 0 <= c_i <= n_i.
      able_n: [n] the requested examples, all with c_i >= 1, since others have no next step.

    Returns:
      [n], in the dtype of the difficulties.
    """
    return difficulty.values[difficulty.offsets[able_n] + start_steps_N[able_n] - 1]


def target_difficulty(
    phase: int, total: float, *, ramp_phases: int, p: float, initial_fraction: float
) -> float:
    """Computes D(t), the maximum total difficulty of the output in phase t (Eq. 10).

    After substituting u, the paper's formula is C0 + (B - C0) (t / T)^(p + 1).

    Args:
      phase: t, from 0.
      total: B, the total difficulty of all steps, in nats.
      ramp_phases: T; D is B from this phase on.
      p: exponent of the velocity, above -1. D is linear for 0 and starts slowly above 0.
      initial_fraction: C0 / B, in [0, 1].
    """
    if phase >= ramp_phases:
        return total
    initial = initial_fraction * total
    return initial + (total - initial) * (phase / ramp_phases) ** (p + 1)


def selection_value(
    selected_N: np.ndarray, cost_N: np.ndarray, cluster_N: np.ndarray, budget: float, beta: float
) -> float:
    """Computes F(S) = -(ΔD - ΔH(S)) + β Σ_k sqrt(|C_k ∩ S|) (Eq. 12).

    Args:
      selected_N: [N] bool, the members of S.
      cost_N: [N] δ_i.
      cluster_N: [N] integers from 0, the cluster of each example.
      budget: ΔD.
      beta: β, the weight of diversity relative to difficulty, in nats.
    """
    counts_K = np.bincount(cluster_N[selected_N])
    return float(cost_N[selected_N].sum() - budget + beta * np.sqrt(counts_K).sum())


def _checked_values(difficulty: Ragged) -> np.ndarray:
    """Validates the difficulties and returns them flat, as float64."""
    values_M = np.asarray(difficulty.values, np.float64)
    if values_M.size == 0 or (values_M.min() >= 0 and values_M.max() < np.inf):  # False for NaN.
        return values_M
    bad = np.flatnonzero(~((values_M >= 0) & (values_M < np.inf)))
    if bad.size:
        example = int(np.searchsorted(difficulty.offsets, bad[0], side="right")) - 1
        step = int(bad[0] - difficulty.offsets[example])
        raise UserError(
            f"Step {step} of example {example} (both counting from 0) has difficulty "
            f"{values_M[bad[0]]}; {bad.size - 1} other steps are invalid too. A difficulty is a "
            "weighted negative log probability (Eq. 8) and must be finite and at least 0. Check "
            "the token weights and the student's parameters for NaN, then run --mode=score again."
        )
    return values_M
