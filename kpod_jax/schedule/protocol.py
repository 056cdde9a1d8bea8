"""What a curriculum is: the one thing that is asked how much of each rationale is output.

Letters: N examples.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from kpod_jax.data.records import Ragged
from kpod_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a curriculum is made for.

    Attributes:
      difficulty: d_j of every step before distillation, in nats (Eq. 8): N slices of n_i values.
      clusters: [N] integers from 0, the cluster of each question.
      phases: of the training.
      ramp_phases: T, the phase from which on every step should be output.
      options: `schedule` of the configuration, such as "initial_fraction".
    """

    difficulty: Ragged
    clusters: np.ndarray
    phases: int
    ramp_phases: int
    options: Mapping[str, Any]

    @property
    def num_steps(self) -> np.ndarray:
        """[N] int64, n_i."""
        return self.difficulty.lengths


@dataclasses.dataclass(frozen=True)
class Feedback:
    """What the student does on the training set as it is now.

    Attributes:
      step_losses: N slices of one value a step, its difficulty under the current student (Eq. 8).
    """

    step_losses: Ragged

    @property
    def example_losses(self) -> np.ndarray:
        """[N] float64, the mean of each example's steps, so that long ones do not count as hard."""
        return example_means(self.step_losses)


class Curriculum(Protocol):
    """Chooses what is output at each phase. A class of your own needs these two and `Setting`.

    Attributes:
      needs_feedback: whether each phase is chosen by the current student's losses. They are then
        computed before the phase, which costs a pass over the training set; else the whole schedule
        is made beforehand.
    """

    needs_feedback: bool

    def start_steps(self, phase: int, feedback: Feedback | None = None) -> np.ndarray:
        """c_i of every example: the steps before it are input, the others and the answer output.

        Args:
          phase: from 0. A curriculum that uses no feedback may be asked for any phase at any time
            and answers the same.
          feedback: the student's losses before the phase, where `needs_feedback`.

        Returns:
          [N] integers, 0 <= c_i <= n_i, or n_i + 1 to leave an example out, its answer as well; the
          phase's batches then hold the others.
        """
        ...


def example_means(step_values: Ragged) -> np.ndarray:
    """[N] float64, the mean of each slice; 0 for an empty one."""
    example_M = np.repeat(np.arange(len(step_values)), step_values.lengths)
    sums = np.bincount(example_M, step_values.values, minlength=len(step_values))
    return sums / np.maximum(step_values.lengths, 1)


def checked(start_steps: Any, num_steps_N: np.ndarray, phase: int, name: str) -> np.ndarray:
    """A curriculum's answer as [N] int32 that is not to be written to.

    Args:
      start_steps: what `start_steps` gave.
      num_steps_N: n_i.
      phase: that it was asked for.
      name: of the curriculum.

    Raises:
      UserError: it is no array of N integers from 0 to n_i + 1.
    """
    row = np.asarray(start_steps)
    if row.shape != num_steps_N.shape or row.dtype.kind not in "iu":
        raise UserError(
            f"The curriculum {name} gave start steps of shape {row.shape} and type {row.dtype} for "
            f"phase {phase}; expected {len(num_steps_N)} integers, one an example."
        )
    wrong = np.flatnonzero((row < 0) | (row > num_steps_N + 1))
    if wrong.size:
        i = wrong[0]
        raise UserError(
            f"The curriculum {name} gave start step {row[i]} for example {i} (counted from 0) at "
            f"phase {phase}; expected 0 to {num_steps_N[i]}, its number of steps, or one more to "
            "leave it out."
        )
    return frozen(row.astype(np.int32))


def frozen(array: np.ndarray) -> np.ndarray:
    """The array itself, read-only from now on."""
    array.setflags(write=False)
    return array


def check(holds: bool, name: str, setting: object, expected: str) -> None:
    """Raises a `UserError` unless a setting `holds`."""
    if not holds:
        raise UserError(
            f"{name}={setting} is not possible for the schedule; expected a value {expected}. "
            "Change it in the configuration."
        )
