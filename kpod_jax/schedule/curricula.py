"""Built-in curricula by name, and schedules computed before training.

Besides KPOD (`schedule/kpod.py`), these are the curricula that the paper compares it with:

- `full`: whole rationales from the start. This is plain CoT distillation, or KPOD without
  progression.
- `icl`: in-sample curriculum learning (Jia, Zhang, Zhou, Hao, "In-sample Curriculum Learning by
  Sequence Completion for Natural Language Generation", ACL 2023). The output suffix grows by the
  same number of steps in each phase for all examples, regardless of difficulty.
- `spl`: self-paced learning (Kumar, Packer, Koller, "Self-Paced Learning for Latent Variable
  Models", NeurIPS 2010). Whole examples, those with the lowest current loss first.
- `acl`: adaptive curriculum learning (Kong, Liu, Wang, Tao, "Adaptive Curriculum Learning", ICCV
  2021). Like `spl`, but ordered by a mixture of the loss before training and the current loss.

A name with a colon, `package.module:Class`, is a custom curriculum. It is called with a `Setting`.

Letters: N examples.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from kpod_jax.data.records import Ragged
from kpod_jax.schedule import value
from kpod_jax.schedule.kpod import KPOD
from kpod_jax.schedule.protocol import (
    Curriculum,
    Feedback,
    Setting,
    check,
    example_means,
    read_only,
    validated_start_steps,
)
from kpod_jax.utils import plugins
from kpod_jax.utils.errors import UserError


class FullRationale:
    """Plain CoT distillation (Eq. 1): all steps are output from the start, c_i = 0."""

    needs_feedback = False

    def __init__(self, num_steps: np.ndarray) -> None:
        """Initializes the curriculum.

        Args:
          num_steps: [N] n_i.
        """
        self._start_steps = read_only(np.zeros(len(num_steps), np.int32))

    def start_steps(self, phase: int, feedback: Feedback | None = None) -> np.ndarray:
        """Returns [N] int32 zeros."""
        del phase, feedback
        return self._start_steps


class GrowingSuffix:
    """ICL: the last (t + 1) · growth steps are output in phase t, all from `ramp_phases` on."""

    needs_feedback = False

    def __init__(self, num_steps: np.ndarray, *, growth: int, ramp_phases: int) -> None:
        """Initializes the curriculum.

        Args:
          num_steps: [N] n_i.
          growth: steps that each phase adds.
          ramp_phases: T, the phase from which on all steps are output.

        Raises:
          UserError: if `growth` is below 1.
        """
        check(growth >= 1, "growth", growth, "of at least 1 step per phase")
        self._num_steps = np.asarray(num_steps, np.int32)
        self._growth = growth
        self._ramp_phases = ramp_phases

    def start_steps(self, phase: int, feedback: Feedback | None = None) -> np.ndarray:
        """Returns max(0, n_i - (t + 1) growth), [N] int32."""
        del feedback
        if phase >= self._ramp_phases:
            return read_only(np.zeros_like(self._num_steps))
        return read_only(np.maximum(0, self._num_steps - (phase + 1) * self._growth))


class EasyFirst:
    """SPL and ACL: whole rationales, starting with only the easiest examples.

    The fraction of examples included rises linearly from `initial_fraction` to 1 at phase
    `ramp_phases`. The others are left out, and `BatchSource` fills the batches of the phase with
    the included ones. The difficulty of an example is the mean over its steps of
    (1 - mixing) · d before distillation + mixing · d under the current student.
    """

    needs_feedback = True

    def __init__(
        self, difficulty: Ragged, *, mixing: float, initial_fraction: float, ramp_phases: int
    ) -> None:
        """Initializes the curriculum.

        Args:
          difficulty: d_j of every step before distillation, in nats: N slices of n_i values.
          mixing: weight of the current difficulty, in [0, 1].
          initial_fraction: fraction of examples included in phase 0, in [0, 1].
          ramp_phases: T, the phase from which on all examples are included.

        Raises:
          UserError: if a setting is out of range.
        """
        check(0 <= mixing <= 1, "mixing", mixing, "in [0, 1]")
        check(0 <= initial_fraction <= 1, "initial_fraction", initial_fraction, "in [0, 1]")
        self._initial_N = example_means(difficulty)
        self._num_steps = difficulty.lengths
        self._mixing = mixing
        self._initial_fraction = initial_fraction
        self._ramp_phases = ramp_phases

    def start_steps(self, phase: int, feedback: Feedback | None = None) -> np.ndarray:
        """Returns 0 for examples that are included and n_i + 1 for the others, [N] int32.

        Raises:
          ValueError: if there is no feedback.
        """
        if feedback is None:
            raise ValueError("EasyFirst needs feedback: the student's current losses.")
        fraction = 1.0
        if phase < self._ramp_phases:
            fraction = (
                self._initial_fraction + (1 - self._initial_fraction) * phase / self._ramp_phases
            )
        mixed_N = (1 - self._mixing) * self._initial_N + self._mixing * feedback.example_losses
        left_out = np.argsort(mixed_N, kind="stable")[math.ceil(fraction * len(mixed_N)) :]
        start_steps_N = np.zeros(len(mixed_N), np.int32)
        start_steps_N[left_out] = self._num_steps[left_out] + 1
        return read_only(start_steps_N)


def _kpod(setting: Setting) -> Curriculum:
    options = setting.options
    return KPOD(
        setting.difficulty,
        setting.clusters,
        ramp_phases=setting.ramp_phases,
        p=options["p"],
        initial_fraction=options["initial_fraction"],
        beta=options["beta"],
        solver=options["solver"],
    )


def _icl(setting: Setting) -> Curriculum:
    growth = setting.options["growth"]
    return GrowingSuffix(setting.num_steps, growth=growth, ramp_phases=setting.ramp_phases)


def _easy_first(mixing: Callable[[Setting], float]) -> Callable[[Setting], Curriculum]:
    return lambda setting: EasyFirst(
        setting.difficulty,
        mixing=mixing(setting),
        initial_fraction=setting.options["initial_fraction"],
        ramp_phases=setting.ramp_phases,
    )


CURRICULA: dict[str, Callable[[Setting], Curriculum]] = {
    "kpod": _kpod,
    "full": lambda setting: FullRationale(setting.num_steps),
    "icl": _icl,
    "spl": _easy_first(lambda setting: 1.0),
    "acl": _easy_first(lambda setting: setting.options["mixing"]),
}


def make(name: str, setting: Setting) -> Curriculum:
    """Creates a curriculum by its name in CURRICULA or its import path, `package.module:Class`.

    Raises:
      UserError: if a custom curriculum cannot be imported or is incomplete, or a setting is out of
        range.
    """
    if ":" not in name:
        return CURRICULA[name](setting)
    curriculum = plugins.load(name, "schedule.curriculum")(setting)
    for attribute in ("needs_feedback", "start_steps"):
        if not hasattr(curriculum, attribute):
            raise UserError(
                f"schedule.curriculum={name!r} has no attribute {attribute}, which a curriculum "
                "must have; see kpod_jax.schedule.protocol.Curriculum."
            )
    return curriculum


@dataclasses.dataclass(frozen=True)
class Plan:
    """The schedule of a curriculum, as it is stored.

    Attributes:
      start_steps: [phases, N] int32, row t is c_i(t).
      remaining: [phases] float64, Σ_i h_i(t) in nats (Eq. 9).
      target: [phases] float64, D(t) in nats (Eq. 10), never below `remaining`; None if the
        curriculum has no target.
    """

    start_steps: np.ndarray
    remaining: np.ndarray
    target: np.ndarray | None


def plan(curriculum: Curriculum, phases: int, difficulty: Ragged, name: str = "") -> Plan:
    """Computes the start steps of all phases, or only of the first if feedback is needed.

    The student has not changed since the difficulties were computed, so they serve as the feedback
    for the first phase.

    Args:
      curriculum: queried phase by phase, in order.
      phases: number of phases.
      difficulty: d_j of every step, in nats.
      name: name of the curriculum, for messages.

    Raises:
      UserError: if a difficulty is negative, NaN or infinite, or the curriculum returns invalid
        start steps.
    """
    feedback = Feedback(difficulty) if curriculum.needs_feedback else None
    rows = [
        validated_start_steps(
            curriculum.start_steps(phase, feedback), difficulty.lengths, phase, name
        )
        for phase in range(1 if curriculum.needs_feedback else phases)
    ]
    target = None
    if isinstance(curriculum, KPOD):
        target = np.array([curriculum.target(phase) for phase in range(phases)])
    return Plan(np.stack(rows), remaining(difficulty, rows), target)


def remaining(difficulty: Ragged, rows: "list[np.ndarray] | np.ndarray") -> np.ndarray:
    """Returns Σ_i h_i for each row of start steps (Eq. 9), summed exactly, [phases] float64."""
    difficulty = value.on_exact_grid(difficulty)
    return np.array([value.remaining_difficulty(difficulty, row).sum() for row in rows])
