"""The paper's curriculum: which steps are output at each phase, by difficulty and diversity.

Letters: N examples, n of them that have a step left.
"""

import numpy as np

from kpod_jax.data.records import Ragged
from kpod_jax.schedule import solvers, value
from kpod_jax.schedule.protocol import Feedback, check, frozen
from kpod_jax.utils.errors import UserError


class KPOD:
    """The in-rationale progressive curriculum (Eq. 9-13), fixed before training starts.

    Before phase 0 only the answer is output, c_i = n_i. Phase 0 lets examples advance by one step
    at a time until no further step fits C0. Each later phase before `ramp_phases` lets the examples
    of one selection advance by one step each. From `ramp_phases` on every c_i is 0, however many
    steps of an example were still input.

    Sums are exact (`value.on_exact_grid`), so that Σ h_i(t) <= D(t) holds to the last bit and the
    order of the examples does not matter, except among examples of one cluster whose next steps are
    exactly as difficult: there the first in the data set advances first.
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
        """Checks the settings; the schedule is made when it is first asked for.

        Args:
          difficulty: d_j of every step, in nats: N slices of n_i values.
          clusters: [N] integers from 0, the cluster of each question.
          ramp_phases: T of Eq. 10, not below 0; the paper has half the phases of the training.
          p: exponent of Eq. 10, above -1; the paper has 0.5.
          initial_fraction: C0 / B of Eq. 10, in [0, 1]; the paper has 0.3.
          beta: β of Eq. 12, not below 0; the paper has 12.
          solver: of Eq. 13, a name of `solvers.SOLVERS`.

        Raises:
          UserError: a setting is out of range, a difficulty is negative or not finite, or there is
            not one cluster an example.
        """
        check(ramp_phases >= 0, "ramp_phases", ramp_phases, "not below 0 (T of Eq. 10)")
        check(-1 < p < np.inf, "p", p, "above -1 (Eq. 10)")
        check(0 <= initial_fraction <= 1, "initial_fraction", initial_fraction, "in [0, 1]")
        check(0 <= beta < np.inf, "beta", beta, "finite and not below 0 (Eq. 12)")
        clusters = np.asarray(clusters)
        if clusters.shape != (len(difficulty),) or clusters.dtype.kind not in "iu":
            raise UserError(
                f"{len(difficulty)} examples have clusters of shape {clusters.shape} and type "
                f"{clusters.dtype}; expected one integer an example. Run --mode=schedule again."
            )
        if clusters.size and clusters.min() < 0:
            raise UserError(
                f"Example {int(clusters.argmin())} (counted from 0) has cluster {clusters.min()}; "
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
        self._rows: list[np.ndarray] = []  # c_i(0), c_i(1), ... as far as they were asked for.
        self._remaining = 0.0  # Σ h_i at the last of them.

    def target(self, phase: int) -> float:
        """D(t) in nats (Eq. 10)."""
        return value.target_difficulty(
            phase,
            self._total,
            ramp_phases=self._ramp_phases,
            p=self._p,
            initial_fraction=self._initial_fraction,
        )

    def start_steps(self, phase: int, feedback: Feedback | None = None) -> np.ndarray:
        """c_i of any phase; feedback is not used.

        Raises:
          ValueError: `phase` is negative.
        """
        del feedback
        if phase < 0:
            raise ValueError(f"phase {phase} is negative")
        while len(self._rows) <= min(phase, self._ramp_phases):
            self._rows.append(frozen(self._next_row()))
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
        """Makes one selection (Eq. 13), in place; whether anything was selected."""
        able_n = np.flatnonzero(start_steps_N)
        cost_n = value.next_step_difficulty(self._difficulty, start_steps_N, able_n)
        budget = target - self._remaining
        selected_n = self._solver(cost_n, self._clusters[able_n], budget, self._beta)
        start_steps_N[able_n[selected_n]] -= 1
        self._remaining += float(cost_n[selected_n].sum())
        return bool(selected_n.any())
