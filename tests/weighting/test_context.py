"""Token weights by what stands before a token."""

import numpy as np
import pytest

from kpod_jax.data.records import Ragged
from kpod_jax.weighting.context import weights_by_context

# Two rationales; the answer's tokens and EOS follow them.
TARGETS = Ragged.from_list([[7, 8, 7, 9, 50, 1], [7, 8, 50, 1]], np.int32)
WEIGHTS = Ragged.from_list([[0.2, 0.4, 0.6, 1.0], [0.0, 0.8]], np.float32)


def test_one_token_of_context_by_hand():
    found = weights_by_context(WEIGHTS, TARGETS, 1)
    mean = 0.5
    first = (0.2 + 0.0 + 5 * mean) / 7  # Nothing stands before it.
    after_7 = (0.4 + 1.0 + 0.8 + 5 * mean) / 8
    after_8 = (0.6 + 5 * mean) / 6
    expected = [first, after_7, after_8, after_7, first, after_7]
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    np.testing.assert_array_equal(found.offsets, WEIGHTS.offsets)
    assert found.values.dtype == np.float32


def test_longer_contexts_are_interpolated_with_shorter_ones():
    one, two = (weights_by_context(WEIGHTS, TARGETS, length) for length in (1, 2))
    both = (0.4 + 0.8 + 5 * one.values[1]) / 7  # After the beginning and 7.
    np.testing.assert_allclose(two.values[[1, 5]], both, rtol=1e-6)
    np.testing.assert_allclose(two.values[3], (1.0 + 5 * one.values[3]) / 6, rtol=1e-6)


def test_no_context_leaves_the_weights():
    assert weights_by_context(WEIGHTS, TARGETS, 0) is WEIGHTS


@pytest.mark.parametrize("length", [1, 2, 3])
def test_what_follows_the_same_tokens_has_one_weight(length):
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 3, n).astype(np.int32) for n in rng.integers(1, 30, 40)]
    weights = Ragged.from_list([rng.random(len(row), np.float32) for row in ids], np.float32)
    found = weights_by_context(weights, Ragged.from_list(ids, np.int32), length)
    by_context: dict[tuple[int, ...], set[float]] = {}
    for i, row in enumerate(ids):
        for j in range(len(row)):
            padded = [-1] * length + row[:j].tolist()
            by_context.setdefault(tuple(padded[-length:]), set()).add(float(found[i][j]))
    assert {len(values) for values in by_context.values()} == {1}
    assert len(set(found.values.tolist())) > 3
