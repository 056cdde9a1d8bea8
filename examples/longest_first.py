"""A custom curriculum: one more step of every rationale in each phase, the longest first."""

import numpy as np


class LongestFirst:
    """Curriculum in which a rationale with k fewer steps than the longest starts k phases later."""

    needs_feedback = False

    def __init__(self, setting):
        """Initializes the curriculum from a `kpod_jax.schedule.protocol.Setting`."""
        self.num_steps = setting.num_steps

    def start_steps(self, phase, feedback=None):
        """Returns c_i of every example: steps before it are input, the others are output."""
        waits = self.num_steps.max() - self.num_steps
        return np.clip(self.num_steps - np.maximum(phase - waits, 0), 0, self.num_steps)
