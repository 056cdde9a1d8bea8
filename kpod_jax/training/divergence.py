"""Divergence: stops a training whose loss, gradient or state is not finite, or skips its steps.

The metrics of a step are on the host one step later anyway, and the state is looked at only when it
is about to be saved or evaluated, so the device never waits for these checks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kpod_jax.parallel import processes
from kpod_jax.utils.errors import UserError, listed

# Metrics of a train step that are finite unless the training diverges.
MEASURED = ("loss", "token_loss", "gradient_norm")


@jax.jit
def _are_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def nonfinite(tree: Any) -> list[str]:
    """Returns the names of a tree's arrays that hold NaN or infinity, as "decoder/embedding"."""
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    are_finite = jax.device_get(_are_finite([leaf for _, leaf in leaves]))
    return [name for (name, _), finite in zip(leaves, are_finite, strict=True) if not finite]


def require_finite(tree: Any, what: str, advice: str) -> None:
    """Checks parameters, or the state of a training.

    Args:
      tree: arrays on the device.
      what: what they are, for the message.
      advice: what to do.

    Raises:
      UserError: one of them holds NaN or infinity.
    """
    if names := nonfinite(tree):
        raise UserError(
            f"{what} are not finite: NaN or infinity in {listed(names, 3)}. The training that made "
            f"them diverged. {advice}"
        )


class Guard:
    """Watches the steps of a training.

    Attributes:
      skipped: number of steps skipped so far.
      in_a_row: number of those at the end.
    """

    def __init__(
        self,
        max_skipped: int,
        record_ids: Callable[[int], Sequence[str]],
        last_saved: Callable[[], int | None],
        stored: Mapping[str, int] | None = None,
    ) -> None:
        """Initializes the guard.

        Args:
          max_skipped: maximum number of steps skipped in a row; 0: none is skipped.
          record_ids: returns the ids of the records of a step.
          last_saved: returns the step of the last checkpoint.
          stored: `counts` at the step that the training resumes from.
        """
        self._max_skipped, self._record_ids, self._last_saved = max_skipped, record_ids, last_saved
        self.skipped, self.in_a_row = 0, 0
        if stored:
            self.skipped, self.in_a_row = stored["total"], stored["in_a_row"]

    @property
    def counts(self) -> dict[str, int]:
        """The attributes, to resume from."""
        return {"total": self.skipped, "in_a_row": self.in_a_row}

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Checks the metrics of a step, numbered from 1.

        Raises:
          UserError: they are not finite, and the step was not skipped or too many were.
        """
        if all(math.isfinite(metrics[name]) for name in MEASURED):
            self.in_a_row = 0
            return
        values = ", ".join(f"{name.replace('_', ' ')} {metrics[name]:g}" for name in MEASURED)
        records = listed(self._record_ids(step - 1), 8)
        what = f"{values}, learning rate {metrics['learning_rate']:g}, records {records}"
        if self.in_a_row < self._max_skipped:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            processes.log(f"distill: skipped step {step}: {what}")
            return
        skipped = (
            f" after {self.in_a_row} steps skipped in a row (distill.skip_nonfinite)"
            if self.in_a_row
            else ""
        )
        raise self._error(
            f"The training diverged at step {step}{skipped}: {what}.", at_once=step == 1
        )

    def check_state(self, step: int, state: Any) -> None:
        """Checks the state after a step, before it is saved or evaluated; 0: the initial state.

        Raises:
          UserError: it is not finite.
        """
        if not (names := nonfinite(state)):
            return
        where = f"NaN or infinity in {listed(names, 3)}"
        if step == 0:
            raise UserError(
                f"The initial parameters are not finite: {where}. Check the weights of "
                "student.model, or use student.dtype=float32."
            )
        # The loss and the gradient were finite, so `skip_nonfinite` would not skip the step.
        what = f"The training diverged at step {step}: {where} after its update."
        raise self._error(what, at_once=False, can_skip=False)

    def _error(self, what: str, *, at_once: bool, can_skip: bool = True) -> UserError:
        saved = self._last_saved()
        kept = f"The checkpoint of step {saved} is kept" if saved else "Nothing was saved"
        advice = "Check the weights of student.model and these records, l" if at_once else "L"
        skip = (
            ""
            if self._max_skipped or not can_skip
            else "; or skip such steps with --config.distill.skip_nonfinite=3, which resumes"
        )
        return UserError(
            f"{what} {kept}. {advice}ower distill.learning_rate, raise distill.warmup_steps or use "
            f"student.dtype=float32, in another --workdir{skip}."
        )
