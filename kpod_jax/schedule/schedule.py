"""The training schedule, computed from step difficulties and question clusters (Eq. 9-13).

Letters: N examples.
"""

import dataclasses
import math
import pathlib
from typing import ClassVar

import numpy as np
from jax.sharding import Mesh

from kpod_jax.config.defaults import Config
from kpod_jax.data import tokens
from kpod_jax.data.prepare import Data
from kpod_jax.data.records import Ragged
from kpod_jax.models.student import Student
from kpod_jax.parallel import sharding
from kpod_jax.schedule import clusters, curricula
from kpod_jax.schedule.difficulty import require_finite
from kpod_jax.schedule.online import OnlineSchedule
from kpod_jax.schedule.protocol import Curriculum, Setting
from kpod_jax.utils import files


@dataclasses.dataclass(frozen=True)
class Schedule:
    """c_i(t) of every example and phase.

    Attributes:
      start_steps: [phases, N] int32, number of leading steps that are input; only the first phase
        if the curriculum needs feedback.
      clusters: [N] integers from 0, the cluster of each question.
      remaining: [phases] float64, Σ_i h_i(t) in nats (Eq. 9).
      target: [phases] float64, D(t) in nats (Eq. 10); None if the curriculum has no target.
      phases: number of phases.
      phase_steps: training steps per phase; 0 for one epoch.
      silhouette: silhouette of the clusters; NaN if unknown.
      notes: warnings for the user about the clusters.
    """

    start_steps: np.ndarray
    clusters: np.ndarray
    remaining: np.ndarray
    target: np.ndarray | None = None
    phases: int = 0
    phase_steps: int = 0
    silhouette: float = math.nan
    notes: tuple[str, ...] = ()

    OUTPUTS: ClassVar[tuple[str, ...]] = ("schedule.npz",)

    def __call__(self, phase: int) -> np.ndarray:
        """Returns c_i of a phase, [N] int32; the last row for any phase after it."""
        return self.start_steps[min(phase, len(self.start_steps) - 1)]

    def save(self, root: pathlib.Path) -> None:
        """Writes `OUTPUTS` to a work directory."""
        arrays = {"start_steps": self.start_steps, "remaining": self.remaining}
        if self.target is not None:
            arrays["target"] = self.target
        files.write_npz(root / "schedule.npz", clusters=self.clusters, **arrays)

    @classmethod
    def load(cls, root: pathlib.Path) -> "Schedule":
        """Reads what `save` wrote."""
        names = ("start_steps", "clusters", "remaining")
        arrays = files.read_npz(root / "schedule.npz", "schedule", names)
        return cls(*(arrays[name] for name in names), target=arrays.get("target"))

    def __str__(self) -> str:
        """Returns a one-line summary."""
        means = self.start_steps.mean(axis=1)
        silhouette = "" if math.isnan(self.silhouette) else f", silhouette {self.silhouette:.2f}"
        return (
            f"{self.phases} phases, mean c_i {means[0]:.2f} "
            + (f"falling to {means[-1]:.2f}" if len(means) == self.phases else "at first")
            + f", {self.clusters.max() + 1} clusters{silhouette}"
        )


def make_schedule(
    config: Config,
    student: Student,
    data: Data,
    difficulty: Ragged,
    phases: int,
    mesh: Mesh | None = None,
) -> Schedule:
    """Clusters the questions and computes the schedule.

    Args:
      config: the `schedule` section of the configuration.
      student: its token embeddings give the question vectors if `config.vectors` is empty.
      data: provides the training questions.
      difficulty: d_k of every step, in nats.
      phases: number of phases.
      mesh: device mesh; None for all devices.

    Raises:
      UserError: if a difficulty is not finite, the question vectors cannot be read, or a
        curriculum setting is invalid.
    """
    require_finite(difficulty, data.train)
    records, path = data.train.records, config.vectors
    if path.endswith(".npy"):
        vectors = clusters.read_question_vectors(path, len(records))
    elif path:
        vectors = clusters.question_vectors((record.question for record in records), path)
    else:
        tokenized = tokens.tokenize_questions(records, student.tokenizer, prompt="{question}")
        params = student.load(mesh or sharding.make_mesh())
        vectors = clusters.mean_token_vectors(student.embeddings(params), tokenized)
    clustering = clusters.cluster_questions(vectors, config.clusters, student.seed)
    curriculum = make_curriculum(config, difficulty, clustering.labels, phases)
    plan = curricula.plan(curriculum, phases, difficulty, config.curriculum)
    return Schedule(
        plan.start_steps,
        clustering.labels,
        plan.remaining,
        plan.target,
        phases,
        config.phase_steps,
        clustering.silhouette,
        (clustering.warning,) if clustering.warning else (),
    )


def make_curriculum(
    config: Config, difficulty: Ragged, labels: np.ndarray, phases: int
) -> Curriculum:
    """Creates the curriculum of a `schedule` configuration, given the clusters of the questions."""
    ramp = min(phases - 1, round(config.ramp_fraction * phases))
    return curricula.make(
        config.curriculum, Setting(difficulty, labels, phases, ramp, config.to_dict())
    )


def training_schedule(
    config: Config,
    schedule: Schedule | None,
    data: Data,
    difficulty: Ragged | None,
    phases: int,
    workdir: pathlib.Path,
) -> "Schedule | OnlineSchedule":
    """Returns the schedule to train with: an `OnlineSchedule` if the curriculum needs feedback.

    Args:
      config: the `schedule` section of the configuration.
      schedule: from `make_schedule`; None for whole rationales.
      data: the training examples.
      difficulty: the step difficulties that the schedule was computed from.
      phases: number of phases.
      workdir: where an online schedule is stored, so that an interrupted run can resume.
    """
    num_steps, name = data.train.num_steps, config.curriculum
    if schedule is None or difficulty is None:
        zeros = np.zeros((1, len(num_steps)), np.int32)
        return Schedule(zeros, zeros[0], np.zeros(1), None, phases, config.phase_steps)
    curriculum = make_curriculum(config, difficulty, schedule.clusters, phases)
    if curriculum.needs_feedback:
        path = workdir / "start_steps.npz"
        return OnlineSchedule(curriculum, num_steps, path, name, config.phase_steps)
    return dataclasses.replace(schedule, phases=phases, phase_steps=config.phase_steps)
