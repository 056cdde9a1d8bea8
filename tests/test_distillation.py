"""How the training is put together."""

import types
from typing import Any

import numpy as np
import pytest

from kpod_jax import distillation
from kpod_jax.config import defaults
from kpod_jax.data.records import Ragged
from kpod_jax.weighting.context import weights_by_context

STORED = Ragged.from_list([[0.0, 0.25, 0.5, 0.125], [0.75]], np.float32)
# Two steps of two tokens, then the answer; one step of a token, then the answer and EOS.
TRAIN: Any = types.SimpleNamespace(
    steps=Ragged.from_list([[0, 0, 1, 1, 2], [0, 1, 1]], np.int32),
    rationale_lengths=np.array([4, 1], np.int32),
    targets=Ragged.from_list([[5, 6, 5, 6, 9], [5, 9, 1]], np.int32),
)
LITERAL = {"weight_context": 0}


def found(weights: Ragged | None = STORED, **options: Any) -> Any:
    config = defaults.get_config()
    config.distill.update(options)
    return distillation.loss_weights(config.distill, TRAIN, weights)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # Of one token: the mean is 0.325; two tokens have nothing, two a 5 before them, one a 6.
        (
            {"step_start_weight": "learned", "weight_context": 1},
            np.array([2.375 / 7, 2 / 7, 2.125 / 6, 2 / 7, 2.375 / 7]),
        ),
        ({"step_start_weight": "learned"}, [0, 0.25, 0.5, 0.125, 0.75]),
        ({"step_start_weight": "learned", "min_weight": 0.5}, [0.5, 0.5, 0.5, 0.5, 0.75]),
        ({}, [1, 0.25, 1, 0.125, 1]),
        ({"min_weight": 0.5}, [1, 0.5, 1, 0.5, 1]),
        # The mean of the first is 0.21875, of the second 0.75.
        (
            {"step_start_weight": "learned", "rescale_weights": "mean"},
            [0, 8 / 7, 16 / 7, 4 / 7, 1],
        ),
        # The mean of the others is 0.1875; with the floor it is 0.225.
        ({"rescale_weights": "mean"}, [1, 4 / 3, 1, 2 / 3, 1]),
        ({"rescale_weights": "mean", "min_weight": 0.2}, [1, 10 / 9, 1, 8 / 9, 1]),
    ],
)
def test_the_losss_weights_by_hand(options, expected):
    before = STORED.values.copy()
    weights = found(**LITERAL | options)
    np.testing.assert_allclose(weights.values, np.array(expected), rtol=1e-6)
    assert weights.values.dtype == np.float32
    np.testing.assert_array_equal(weights.lengths, STORED.lengths)
    np.testing.assert_array_equal(STORED.values, before)  # Difficulties are from these.
    if options.get("rescale_weights") == "mean":
        np.testing.assert_allclose([w.mean() for w in (weights[0], weights[1])], 1, rtol=1e-6)


def test_without_learned_weights_all_are_1():
    assert found(weights=None, rescale_weights="mean") is None


def test_a_weighted_cross_entropy_tilts_the_choice_by_the_weights():
    """Two options, of which data takes the first with p: trained on a and b, p a : (1 - p) b."""
    p, a, b, logits = 0.6, 0.25, 1.0, np.zeros(2)
    mass = np.array([p * a, (1 - p) * b])  # Expected weight of each target.
    for _ in range(2000):
        q = np.exp(logits) / np.exp(logits).sum()
        logits -= mass.sum() * q - mass  # The gradient of -Σ mass log q.
    np.testing.assert_allclose(q, np.array([0.15, 0.4]) / 0.55, rtol=1e-6)


def test_weights_by_context_do_not_tilt_the_choice():
    """After token 5 stands 6 in six of ten rationales, with weight 0.25, and else 7, with 1."""
    second = [6] * 6 + [7] * 4
    targets = Ragged.from_list([[5, token] for token in second], np.int32)
    weights = Ragged.from_list([[0.5, 0.25 if t == 6 else 1.0] for t in second], np.float32)
    levelled = weights_by_context(weights, targets, 2)
    mass = np.zeros(2)
    np.add.at(mass, np.array(second) - 6, levelled.values[1::2])
    np.testing.assert_allclose(mass / mass.sum(), [0.6, 0.4], rtol=1e-6)  # Trained on: the q.


def test_a_training_is_cut_after_the_step_that_reaches_the_tokens():
    source: Any = types.SimpleNamespace(
        supervised_tokens=lambda steps: np.array([[10, 1], [0, 1], [10, 1], [10, 1]])[:steps]
    )
    cuts = [distillation._steps_for_tokens(source, tokens, 4) for tokens in (0, 10, 11, 20, 30, 31)]
    assert cuts == [1, 1, 3, 3, 4, 4]
