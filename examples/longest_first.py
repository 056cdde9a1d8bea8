"""A curriculum of one's own: a step more of every rationale at each phase, the longest first."""

import numpy as np


class LongestFirst:
    """Rationales with fewer steps than the longest start as many phases later."""

    needs_feedback = False

    def __init__(self, setting):
        """Takes a `kpod_jax.schedule.protocol.Setting`."""
        self.num_steps = setting.num_steps

    def start_steps(self, phase, feedback=None):
        """c_i of every example: the steps before it are given, the others are written."""
        waits = self.num_steps.max() - self.num_steps
        return np.clip(self.num_steps - np.maximum(phase - waits, 0), 0, self.num_steps)
