"""The interface of curricula, which choose how much of each rationale is output.

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
    """The arguments that a curriculum is created from.

    Attributes:
      difficulty: d_j of every step before distillation, in nats (Eq. 8): N slices of n_i values.
      clusters: [N] integers from 0, the cluster of each question.
      phases: number of phases.
      ramp_phases: T, the phase from which on every step should be output.
      options: the `schedule` section of the configuration, with keys such as "initial_fraction".
    """

    difficulty: Ragged
    clusters: np.ndarray
    phases: int
    ramp_phases: int
    options: Mapping[str, Any]

    @property
    def num_steps(self) -> np.ndarray:
        """n_i, [N] int64."""
        return self.difficulty.lengths


@dataclasses.dataclass(frozen=True)
class Feedback:
    """The losses of the current student on the training set.

    Attributes:
      step_losses: the difficulty of every step under the current student (Eq. 8), in nats: N slices
        of n_i values.
    """

    step_losses: Ragged

    @property
    def example_losses(self) -> np.ndarray:
        """Mean step loss per example, [N] float64, so that length alone does not add difficulty."""
        return example_means(self.step_losses)


class Curriculum(Protocol):
    """Chooses the output of each phase. A custom class must have both members and take a `Setting`.

    Attributes:
      needs_feedback: whether the choice depends on the current student's losses. If so, they are
        computed before each phase, which takes a pass over the training set; otherwise the whole
        schedule is computed before training.
    """

    needs_feedback: bool

    def start_steps(self, phase: int, feedback: Feedback | None = None) -> np.ndarray:
        """Returns c_i per example: the first c_i steps are input, the rest and the answer output.

        Args:
          phase: from 0. Without feedback, phases may be requested in any order and repeatedly, and
            the result depends on the phase alone.
          feedback: the student's losses before the phase, if `needs_feedback`.

        Returns:
          [N] integers, 0 <= c_i <= n_i, or n_i + 1 to leave out an example, including its answer;
          the batches of the phase then contain only the others.
        """
        ...


def example_means(step_values: Ragged) -> np.ndarray:
    """Returns the mean of each slice, [N] float64; 0 for an empty slice."""
    example_M = np.repeat(np.arange(len(step_values)), step_values.lengths)
    sums = np.bincount(example_M, step_values.values, minlength=len(step_values))
    return sums / np.maximum(step_values.lengths, 1)


def validated_start_steps(
    start_steps: Any, num_steps_N: np.ndarray, phase: int, name: str
) -> np.ndarray:
    """Validates the start steps from a curriculum; returns them as a read-only [N] int32 array.

    Args:
      start_steps: the return value of `Curriculum.start_steps`.
      num_steps_N: n_i.
      phase: the requested phase.
      name: name of the curriculum.

    Raises:
      UserError: if `start_steps` is not an array of N integers from 0 to n_i + 1.
    """
    row = np.asarray(start_steps)
    if row.shape != num_steps_N.shape or row.dtype.kind not in "iu":
        raise UserError(
            f"The curriculum {name} returned start steps of shape {row.shape} and type {row.dtype} "
            f"for phase {phase}; expected {len(num_steps_N)} integers, one per example."
        )
    invalid = np.flatnonzero((row < 0) | (row > num_steps_N + 1))
    if invalid.size:
        i = invalid[0]
        raise UserError(
            f"The curriculum {name} returned start step {row[i]} for example {i} (counting from 0) "
            f"in phase {phase}; expected 0 to {num_steps_N[i]}, its number of steps, or one more "
            "to leave it out."
        )
    return read_only(row.astype(np.int32))


def read_only(array: np.ndarray) -> np.ndarray:
    """Makes an array read-only and returns it."""
    array.setflags(write=False)
    return array


def check(holds: bool, name: str, setting: object, expected: str) -> None:
    """Raises a `UserError` about a setting unless `holds` is true."""
    if not holds:
        raise UserError(
            f"Invalid schedule setting {name}={setting}; expected a value {expected}. Change it in "
            "the configuration."
        )
