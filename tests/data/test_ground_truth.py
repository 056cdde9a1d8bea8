import numpy as np
import pytest

from kpod_jax.data import ground_truth
from kpod_jax.data.records import Ragged, Record


def test_spans_share_characters_but_not_ends():
    spans, others = [(0, 2), (2, 4), (3, 3), (4, 9)], [(1, 4), (8, 9)]
    assert ground_truth.spans_overlap(spans, others).tolist() == [
        [True, False],
        [True, False],
        [False, False],
        [False, True],
    ]
    assert ground_truth.spans_overlap(spans, ()).shape == (4, 0)


def test_tokens_of_keypoints():
    record = Record("a", "q", ("is 48 + 2",), "50", keypoints=((3, 5), (8, 9)))
    spans = Ragged.from_list([[(0, 2), (3, 4), (4, 5), (6, 7), (8, 9)]])
    inside = ground_truth.keypoint_tokens([record], spans)
    assert inside is not None and inside.tolist() == [False, True, True, False, True]
    unknown = Record("b", "q", ("is 48 + 2",), "50")
    assert ground_truth.keypoint_tokens([unknown], spans) is None
    assert ground_truth.keypoint_tokens([], spans) is None


def test_hardness_is_of_all_records_or_unknown():
    one = Record("a", "q", ("1 ", "2"), "y", hardness=(1.0, 2.0))
    found = ground_truth.hardness([one, Record("b", "q", ("3",), "y", hardness=(0.5,))])
    assert found is not None and found.tolist() == [1.0, 2.0, 0.5]
    assert ground_truth.hardness([one, Record("b", "q", ("3",), "y")]) is None


def test_rank_correlation_by_hand():
    x = np.array([1.0, 2, 3, 4])
    assert ground_truth.rank_correlation(x, x**3) == pytest.approx(1)
    # Ranks 1, 2, 3, 4 and 2, 1, 4, 3: 1 - 6 · 4 / (4 · 15).
    assert ground_truth.rank_correlation(x, np.array([2.0, 1, 9, 8])) == pytest.approx(0.6)
    assert ground_truth.rank_correlation(np.ones(4), x) is None
    assert ground_truth.rank_correlation(x[:2], x[:2]) is None
