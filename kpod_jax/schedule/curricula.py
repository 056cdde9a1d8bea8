"""Curricula by name, and the schedule that one makes beforehand.

Besides KPOD's (`schedule/kpod.py`) there are those that the paper compares it with:

- `full`: whole rationales from the start; plain CoT distillation, and KPOD without progression.
- `icl`: in-sample curriculum learning (Jia, Zhang, Zhou, Hao, "In-sample Curriculum Learning by
  Sequence Completion for Natural Language Generation", ACL 2023). The suffix that is output grows
  by as many steps at each phase for all examples, however difficult they are.
- `spl`: self-paced learning (Kumar, Packer, Koller, "Self-Paced Learning for Latent Variable
  Models", NeurIPS 2010). Whole examples, those of the lowest current loss first.
- `acl`: adaptive curriculum learning (Kong, Liu, Wang, Tao, "Adaptive Curriculum Learning", ICCV
  2021). Likewise, by a mixture of the loss before training and the current one.

A name with a colon, `package.module:Class`, is one of yours: it is called with a `Setting`.

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
    checked,
    example_means,
    frozen,
)
from kpod_jax.utils import plugins
from kpod_jax.utils.errors import UserError


class FullRationale:
    """Every step is output from the start: c_i = 0, plain CoT distillation (Eq. 1)."""

    needs_feedback = False

    def __init__(self, num_steps: np.ndarray) -> None:
        """Takes [N] the numbers of steps n_i."""
        self._start_steps = frozen(np.zeros(len(num_steps), np.int32))

    def start_steps(self, phase: int, feedback: Feedback | None = None) -> np.ndarray:
        """[N] int32 zeros."""
        del phase, feedback
        return self._start_steps


class GrowingSuffix:
    """ICL: at phase t the last (t + 1) · growth steps are output, and all from `ramp_phases` on."""

    needs_feedback = False

    def __init__(self, num_steps: np.ndarray, *, growth: int, ramp_phases: int) -> None:
        """Takes [N] n_i, the steps that a phase adds, and T.

        Raises:
          UserError: nothing grows.
        """
        check(growth >= 1, "growth", growth, "of at least 1 step a phase")
        self._num_steps = np.asarray(num_steps, np.int32)
        self._growth = growth
        self._ramp_phases = ramp_phases

    def start_steps(self, phase: int, feedback: Feedback | None = None) -> np.ndarray:
        """[N] int32, max(0, n_i - (t + 1) growth)."""
        del feedback
        if phase >= self._ramp_phases:
            return frozen(np.zeros_like(self._num_steps))
        return frozen(np.maximum(0, self._num_steps - (phase + 1) * self._growth))


class EasyFirst:
    """SPL and ACL: the easiest examples alone at first, as whole rationales; all at last.

    The share of the examples that take part rises linearly from `initial_fraction` to 1 at phase
    `ramp_phases`. The others are left out, and `BatchSource` fills the phase's steps with those
    that take part. An example's difficulty is the mean of its steps':
    (1 - mixing) · before distillation + mixing · under the current student.
    """

    needs_feedback = True

    def __init__(
        self, difficulty: Ragged, *, mixing: float, initial_fraction: float, ramp_phases: int
    ) -> None:
        """Takes the difficulty of every step before distillation, and the settings.

        Raises:
          UserError: a setting is out of range.
        """
        check(0 <= mixing <= 1, "mixing", mixing, "in [0, 1]")
        check(0 <= initial_fraction <= 1, "initial_fraction", initial_fraction, "in [0, 1]")
        self._initial_N = example_means(difficulty)
        self._num_steps = difficulty.lengths
        self._mixing = mixing
        self._initial_fraction = initial_fraction
        self._ramp_phases = ramp_phases

    def start_steps(self, phase: int, feedback: Feedback | None = None) -> np.ndarray:
        """[N] int32, 0 for those that take part and n_i + 1 for the others.

        Raises:
          ValueError: there is no feedback.
        """
        if feedback is None:
            raise ValueError("the easiest examples are found by the student's current losses")
        share = 1.0
        if phase < self._ramp_phases:
            share = (
                self._initial_fraction + (1 - self._initial_fraction) * phase / self._ramp_phases
            )
        mixed_N = (1 - self._mixing) * self._initial_N + self._mixing * feedback.example_losses
        left_out = np.argsort(mixed_N, kind="stable")[math.ceil(share * len(mixed_N)) :]
        start_steps_N = np.zeros(len(mixed_N), np.int32)
        start_steps_N[left_out] = self._num_steps[left_out] + 1
        return frozen(start_steps_N)


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
    """The curriculum of a name of CURRICULA or of an import path, `package.module:Class`.

    Raises:
      UserError: there is none of that name, or a setting is out of range.
    """
    if ":" not in name:
        return CURRICULA[name](setting)
    curriculum = plugins.load(name, "schedule.curriculum")(setting)
    for needed in ("needs_feedback", "start_steps"):
        if not hasattr(curriculum, needed):
            raise UserError(
                f"schedule.curriculum={name!r} has no {needed}; see kpod_jax.schedule.protocol."
                "Curriculum for what a curriculum has."
            )
    return curriculum


@dataclasses.dataclass(frozen=True)
class Plan:
    """A curriculum's schedule, as it is stored.

    Attributes:
      start_steps: [phases, N] int32, row t is c_i(t).
      remaining: [phases] float64, Σ_i h_i(t) in nats (Eq. 9).
      target: [phases] float64, D(t) in nats (Eq. 10), never below `remaining`; None for curricula
        that have none.
    """

    start_steps: np.ndarray
    remaining: np.ndarray
    target: np.ndarray | None


def plan(curriculum: Curriculum, phases: int, difficulty: Ragged, name: str = "") -> Plan:
    """Asks a curriculum for all phases, or for the first one where it needs feedback.

    Before the first phase the student is as it was when the difficulties were computed, so these
    are its feedback.

    Args:
      curriculum: asked in the order of the phases.
      phases: of the training.
      difficulty: d_j of every step, for the curve of the remaining difficulty.
      name: of the curriculum, for messages.

    Raises:
      UserError: a difficulty is negative, NaN or infinite, or the curriculum's answer is none.
    """
    feedback = Feedback(difficulty) if curriculum.needs_feedback else None
    rows = [
        checked(curriculum.start_steps(phase, feedback), difficulty.lengths, phase, name)
        for phase in range(1 if curriculum.needs_feedback else phases)
    ]
    target = None
    if isinstance(curriculum, KPOD):
        target = np.array([curriculum.target(phase) for phase in range(phases)])
    return Plan(np.stack(rows), remaining(difficulty, rows), target)


def remaining(difficulty: Ragged, rows: "list[np.ndarray] | np.ndarray") -> np.ndarray:
    """[phases] float64, Σ_i h_i of each row of start steps (Eq. 9), added up exactly."""
    difficulty = value.on_exact_grid(difficulty)
    return np.array([value.remaining_difficulty(difficulty, row).sum() for row in rows])
