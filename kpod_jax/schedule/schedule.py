"""What is output in each phase of the training (Eq. 9-13), made of difficulties and clusters.

Letters: N examples.
"""

import dataclasses
import math
import pathlib
from typing import Any, ClassVar

import numpy as np
from jax.sharding import Mesh

from kpod_jax.config.defaults import Config
from kpod_jax.data import tokens
from kpod_jax.data.prepare import Data
from kpod_jax.data.records import Ragged
from kpod_jax.models.student import Student
from kpod_jax.parallel import sharding
from kpod_jax.schedule import clusters, curricula
from kpod_jax.schedule.online import OnlineSchedule
from kpod_jax.schedule.protocol import Curriculum, Setting
from kpod_jax.utils import files


@dataclasses.dataclass(frozen=True)
class Schedule:
    """c_i(t) of every example and phase.

    Attributes:
      start_steps: [phases, N] int32, how many leading steps are input; of a curriculum that needs
        feedback, those of the first phase alone.
      clusters: [N] integers from 0, the cluster of each question.
      remaining: [phases] float64, Σ_i h_i(t) in nats (Eq. 9).
      target: [phases] float64, D(t) in nats (Eq. 10); None for curricula that have none.
      phases: of the training.
      phase_steps: training steps of a phase; 0: those of an epoch.
      silhouette: of the clusters; NaN where it is not known.
      notes: what a user should know of the clusters.
    """

    start_steps: np.ndarray
    clusters: np.ndarray
    remaining: np.ndarray
    target: np.ndarray | None = None
    phases: int = 0
    phase_steps: int = 0
    silhouette: float = math.nan
    notes: tuple[str, ...] = ()

    OUTPUTS: ClassVar = ("schedule.npz",)

    def __call__(self, phase: int) -> np.ndarray:
        """[N] int32, c_i of a phase from 0; behind the last row, that of the last."""
        return self.start_steps[min(phase, len(self.start_steps) - 1)]

    def save(self, root: pathlib.Path) -> None:
        """Writes `OUTPUTS` under a work directory."""
        arrays = {"start_steps": self.start_steps, "remaining": self.remaining}
        if self.target is not None:
            arrays["target"] = self.target
        files.write_npz(root / "schedule.npz", clusters=self.clusters, **arrays)

    @classmethod
    def load(cls, root: pathlib.Path) -> "Schedule":
        """What `save` wrote."""
        arrays: dict[str, Any] = files.read_npz(root / "schedule.npz")
        return cls(**arrays)

    def __str__(self) -> str:
        """What was done, in a few words."""
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
    """Clusters the questions and asks the curriculum for the schedule.

    Args:
      config: `schedule` of a configuration.
      student: whose token vectors make those of questions, where `config.vectors` names none.
      data: whose training questions are clustered.
      difficulty: d_k of every step, in nats.
      phases: of the training.
      mesh: of the devices; None: all of them.

    Raises:
      UserError: question vectors that cannot be read, or a curriculum's setting.
    """
    records, path = data.train.records, config.vectors
    questions = [record.question for record in records]
    if path.endswith(".npy"):
        vectors = clusters.read_question_vectors(path, len(questions))
    elif path:
        vectors = clusters.question_vectors(questions, path)
    else:
        plain = tokens.tokenize_questions(records, student.tokenizer, prompt="{question}")
        params = student.load(mesh or sharding.make_mesh())
        vectors = clusters.mean_token_vectors(student.embeddings(params), plain)
    found = clusters.cluster_questions(vectors, config.clusters, student.seed)
    curriculum = make_curriculum(config, difficulty, found.labels, phases)
    plan = curricula.plan(curriculum, phases, difficulty, config.curriculum)
    return Schedule(
        plan.start_steps,
        found.labels,
        plan.remaining,
        plan.target,
        phases,
        config.phase_steps,
        found.silhouette,
        (found.warning,) if found.warning else (),
    )


def make_curriculum(
    config: Config, difficulty: Ragged, labels: np.ndarray, phases: int
) -> Curriculum:
    """The curriculum of `schedule` of a configuration, for questions of these clusters."""
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
    """From a phase to c_i; of a curriculum that needs feedback, one that is told the losses.

    Args:
      config: `schedule` of a configuration.
      schedule: from `make_schedule`; None: whole rationales.
      data: the training examples.
      difficulty: that the schedule was made of.
      phases: of the training.
      workdir: where choices by feedback are kept, for a run that is killed.
    """
    num_steps, name = data.train.num_steps, config.curriculum
    if schedule is None or difficulty is None:
        none = np.zeros((1, len(num_steps)), np.int32)
        return Schedule(none, none[0], np.zeros(1), None, phases, config.phase_steps)
    curriculum = make_curriculum(config, difficulty, schedule.clusters, phases)
    if curriculum.needs_feedback:
        path = workdir / "start_steps.npz"
        return OnlineSchedule(curriculum, num_steps, path, name, config.phase_steps)
    return dataclasses.replace(schedule, phases=phases, phase_steps=config.phase_steps)
