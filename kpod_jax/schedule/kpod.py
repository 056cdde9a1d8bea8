"""The paper's curriculum, which balances difficulty and diversity.

Letters: N examples, n of them with input steps left.
"""

import numpy as np

from kpod_jax.data.records import Ragged
from kpod_jax.schedule import solvers, value
from kpod_jax.schedule.protocol import Feedback, check, read_only
from kpod_jax.utils.errors import UserError


class KPOD:
    """The in-rationale progressive curriculum (Eq. 9-13), fixed before training starts.

    Initially only the answer is output, c_i = n_i. Phase 0 advances examples by one step at a time
    until no further step fits into C0. Each later phase before `ramp_phases` makes one selection
    and advances the selected examples by one step each. From `ramp_phases` on every c_i is 0,
    however many input steps an example had left.

    Sums are exact (`value.on_exact_grid`), so Σ h_i(t) <= D(t) holds to the last bit, and the order
    of the examples does not matter. The exception: among examples of one cluster whose next steps
    are equally difficult, the first in the data set advances first.
    """

    needs_feedback = False

    def __init__(
        self,
        difficulty: Ragged,
        clusters: np.ndarray,
        *,
        ramp_phases: int,
        p: float,
        initial_fraction: float,
        beta: float,
        solver: str = "greedy",
    ) -> None:
        """Checks the settings; the schedule is computed lazily.

        Args:
          difficulty: d_j of every step, in nats: N slices of n_i values.
          clusters: [N] integers from 0, the cluster of each question.
          ramp_phases: T of Eq. 10, at least 0; half the phases in the paper.
          p: exponent in Eq. 10, above -1; 0.5 in the paper.
          initial_fraction: C0 / B of Eq. 10, in [0, 1]; 0.3 in the paper.
          beta: β of Eq. 12, at least 0; 12 in the paper.
          solver: solver for Eq. 13, a key of `solvers.SOLVERS`.

        Raises:
          UserError: if a setting is out of range, a difficulty is negative or not finite, or
            `clusters` does not hold one cluster per example.
        """
        check(ramp_phases >= 0, "ramp_phases", ramp_phases, "of at least 0 (T of Eq. 10)")
        check(-1 < p < np.inf, "p", p, "above -1 (Eq. 10)")
        check(0 <= initial_fraction <= 1, "initial_fraction", initial_fraction, "in [0, 1]")
        check(0 <= beta < np.inf, "beta", beta, "that is finite and at least 0 (Eq. 12)")
        clusters = np.asarray(clusters)
        if clusters.shape != (len(difficulty),) or clusters.dtype.kind not in "iu":
            raise UserError(
                f"The clusters of {len(difficulty)} examples have shape {clusters.shape} and type "
                f"{clusters.dtype}; expected one integer per example. Run --mode=schedule again."
            )
        if clusters.size and clusters.min() < 0:
            raise UserError(
                f"Example {int(clusters.argmin())} (counting from 0) has cluster {clusters.min()}; "
                "expected integers from 0. Run --mode=schedule again."
            )
        self._difficulty = value.on_exact_grid(difficulty)
        self._clusters = clusters
        self._total = float(self._difficulty.values.sum())
        self._ramp_phases = ramp_phases
        self._p = p
        self._initial_fraction = initial_fraction
        self._beta = beta
        self._solver = solvers.SOLVERS[solver]
        self._rows: list[np.ndarray] = []  # c_i(0), c_i(1), ... computed so far.
        self._remaining = 0.0  # Σ h_i of the last row.

    def target(self, phase: int) -> float:
        """Returns D(t) in nats (Eq. 10)."""
        return value.target_difficulty(
            phase,
            self._total,
            ramp_phases=self._ramp_phases,
            p=self._p,
            initial_fraction=self._initial_fraction,
        )

    def start_steps(self, phase: int, feedback: Feedback | None = None) -> np.ndarray:
        """Returns c_i of a phase; `feedback` is not used.

        Raises:
          ValueError: if `phase` is negative.
        """
        del feedback
        if phase < 0:
            raise ValueError(f"Expected a nonnegative phase, got {phase}.")
        while len(self._rows) <= min(phase, self._ramp_phases):
            self._rows.append(read_only(self._next_row()))
        return self._rows[min(phase, self._ramp_phases)]

    def _next_row(self) -> np.ndarray:
        phase = len(self._rows)
        if phase == self._ramp_phases:
            return np.zeros(len(self._difficulty), np.int32)
        if phase > 0:
            start_steps_N = self._rows[-1].copy()
            self._advance(start_steps_N, self.target(phase))
        else:
            start_steps_N = self._difficulty.lengths.astype(np.int32)
            while self._advance(start_steps_N, self.target(0)):
                pass
        return start_steps_N

    def _advance(self, start_steps_N: np.ndarray, target: float) -> bool:
        """Makes one selection (Eq. 13), in place; returns whether it selected any example."""
        candidates_n = np.flatnonzero(start_steps_N)
        cost_n = value.next_step_difficulty(self._difficulty, start_steps_N, candidates_n)
        budget = target - self._remaining
        selected_n = self._solver(cost_n, self._clusters[candidates_n], budget, self._beta)
        start_steps_N[candidates_n[selected_n]] -= 1
        self._remaining += float(cost_n[selected_n].sum())
        return bool(selected_n.any())
