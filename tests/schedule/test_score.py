"""How the scoring phase takes its weights."""

import types
from typing import Any

import numpy as np
import pytest

from kpod_jax.config import defaults
from kpod_jax.data.prepare import Data
from kpod_jax.data.records import Ragged
from kpod_jax.schedule import difficulty
from kpod_jax.schedule.difficulty import score_steps
from tests.weighting import tiny

NLL = Ragged.from_list([[1.0, 3.0, 2.0]], np.float32)
WEIGHTS = Ragged.from_list([[0.9, 0.1, 0.5]], np.float32)


@pytest.mark.parametrize(
    ("weights", "first"),
    [("learned", (np.exp(0.9) + 3 * np.exp(0.1)) / (np.exp(0.9) + np.exp(0.1))), ("uniform", 2.0)],
)
def test_difficulties_are_from_the_weights_that_are_asked_for(weights, first, monkeypatch):
    monkeypatch.setattr(difficulty, "rationale_losses", lambda *_, **__: NLL)
    config = defaults.get_config()
    config.difficulty.weights = weights
    data = Data(tiny.tokenized_set([[4]], [[[5, 6], [7]]], [[8]]))
    student: Any = types.SimpleNamespace(
        module=None,
        prompt="",
        seed=0,
        tokenizer=types.SimpleNamespace(pad_token_id=0),
        decoder_start=lambda prompt: 0,
    )
    found = score_steps(config.difficulty, student, data, WEIGHTS, params={})
    np.testing.assert_allclose(found.values, [first, 2.0], rtol=1e-6)
