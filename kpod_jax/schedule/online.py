"""A schedule chosen online, from the student's losses before each phase, and stored in a file.

Letters: N examples.
"""

import numpy as np

from kpod_jax.schedule.protocol import Curriculum, Feedback, validated_start_steps
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError


class OnlineSchedule:
    """c_i of the phases begun so far, for a curriculum that needs feedback.

    Training that resumes in the middle of a phase reads the c_i of that phase from the file. If it
    resumes before the phase, the c_i are recomputed from the same parameters.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        num_steps: np.ndarray,
        path: files.PathLike,
        name: str,
        phase_steps: int = 0,
    ) -> None:
        """Reads the phases stored so far.

        Args:
          curriculum: queried before every phase.
          num_steps: [N] n_i.
          path: an npz file with "start_steps" [phases so far, N]; need not exist.
          name: name of the curriculum, for messages.
          phase_steps: training steps per phase; 0 for one epoch.
        """
        self.phase_steps = phase_steps
        self._curriculum = curriculum
        self._num_steps = num_steps
        self._path = path
        self._name = name
        self._rows: list[np.ndarray] = []
        if files.as_path(path).exists():
            self._rows = list(files.read_npz(path)["start_steps"])

    def __call__(self, phase: int) -> np.ndarray:
        """Returns c_i of a phase that has begun, [N] int32.

        Raises:
          UserError: if the file does not contain the phase.
        """
        if phase >= len(self._rows):
            raise UserError(
                f"{self._path} contains the start steps of {len(self._rows)} phases, but training "
                f"resumes in phase {phase} (counting from 0). If the file was deleted, delete the "
                "checkpoints as well to restart training."
            )
        return self._rows[phase]

    def begin(self, phase: int, feedback: Feedback) -> None:
        """Chooses c_i of a phase from the student's losses before it."""
        row = self._curriculum.start_steps(phase, feedback)
        row = validated_start_steps(row, self._num_steps, phase, self._name)
        self._rows = [*self._rows[:phase], row]
        files.write_npz(self._path, start_steps=np.stack(self._rows))
