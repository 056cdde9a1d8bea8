"""How the schedule phase makes a curriculum of the configuration."""

import numpy as np
import pytest

from kpod_jax.config import defaults
from kpod_jax.data.records import Ragged
from kpod_jax.schedule import schedule


@pytest.mark.parametrize(
    ("share", "phases", "ramp"),
    [(0.5, 20, 10), (0.5, 100, 50), (0.3, 10, 3), (0.0, 8, 0), (1.0, 8, 7), (0.5, 1, 0)],
)
def test_the_ramp_is_a_share_of_the_phases(share, phases, ramp):
    config = defaults.get_config()
    config.schedule.ramp_fraction = share
    # One step at a phase at most, so that the last of many wait for the ramp's end.
    steps = Ragged.from_list([np.ones(200) for _ in range(3)], np.float32)
    labels = np.zeros(3, np.int32)
    curriculum = schedule.make_curriculum(config.schedule, steps, labels, phases)
    whole = [not curriculum.start_steps(phase).any() for phase in range(phases)]
    assert whole == [phase >= ramp for phase in range(phases)]
