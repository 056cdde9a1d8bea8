"""A schedule that follows the student: each phase is chosen before it begins, and kept in a file.

Letters: N examples.
"""

import numpy as np

from kpod_jax.schedule.protocol import Curriculum, Feedback, checked
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError


class OnlineSchedule:
    """c_i of the phases so far, of a curriculum that needs feedback.

    A training that goes on in the middle of a phase finds that phase's choice in the file. One that
    goes on from before it makes the choice again, from the same parameters.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        num_steps: np.ndarray,
        path: files.PathLike,
        name: str,
        phase_steps: int = 0,
    ) -> None:
        """Reads what is there.

        Args:
          curriculum: is asked before every phase.
          num_steps: [N] n_i.
          path: of an npz file with "start_steps" [phases so far, N].
          name: of the curriculum, for messages.
          phase_steps: training steps of a phase; 0: those of an epoch.
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
        """[N] int32, c_i of a phase that was begun.

        Raises:
          UserError: its choice is not in the file.
        """
        if phase >= len(self._rows):
            raise UserError(
                f"{self._path} has the choices of {len(self._rows)} phases, and the training goes "
                f"on in phase {phase} (counted from 0). Was it deleted? Delete the checkpoints as "
                "well, to train anew."
            )
        return self._rows[phase]

    def begin(self, phase: int, feedback: Feedback) -> None:
        """Chooses what is output at a phase, by the student's losses before it."""
        row = self._curriculum.start_steps(phase, feedback)
        row = checked(row, self._num_steps, phase, self._name)
        self._rows = [*self._rows[:phase], row]
        files.write_npz(self._path, start_steps=np.stack(self._rows))
