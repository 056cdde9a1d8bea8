"""The training's stage."""

import types
from typing import Any

import numpy as np

from kpod_jax import configuration
from kpod_jax.data.records import Ragged
from kpod_jax.stages import distill


def test_least_weight_is_a_floor_under_the_losss_weights_alone():
    stored = Ragged.from_list([[0.0, 0.3], [0.9]], np.float32)
    config = configuration.default()
    run: Any = types.SimpleNamespace(config=config, weights=lambda: stored)
    found: Any = distill.loss_weights(run)
    np.testing.assert_array_equal(found.values, stored.values)
    config.distill.least_weight = 0.5
    found = distill.loss_weights(run)
    np.testing.assert_array_equal(found.values, np.array([0.5, 0.5, 0.9], np.float32))
    assert found.values.dtype == np.float32
    np.testing.assert_array_equal(found.lengths, stored.lengths)
    assert stored.values[0] == 0  # Difficulties are from these.
    run.weights = lambda: None
    assert distill.loss_weights(run) is None
