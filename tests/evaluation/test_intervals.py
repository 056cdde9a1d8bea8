import math

import pytest

from kpod_jax.evaluation import intervals


@pytest.mark.parametrize(
    ("correct", "total", "confidence", "interval"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), Table I.
        (81, 263, 0.95, (0.2553, 0.3662)),
        (15, 148, 0.95, (0.0624, 0.1605)),
        (0, 20, 0.95, (0.0, 0.1611)),
        (1, 29, 0.95, (0.0061, 0.1718)),
        # By hand: z = 1.6449, 1 of 2.
        (1, 2, 0.9, (0.1209, 0.8791)),
        (5, 5, 0.95, (0.5655, 1.0)),
    ],
)
def test_wilson_interval(correct, total, confidence, interval):
    found = intervals.wilson_interval(correct, total, confidence)
    assert found == pytest.approx(interval, abs=5e-5)
    mirrored = intervals.wilson_interval(total - correct, total, confidence)
    assert mirrored == pytest.approx((1 - found[1], 1 - found[0]))


def test_wilson_interval_at_its_ends():
    assert intervals.wilson_interval(0, 0) == (0.0, 1.0)
    for total in range(1, 50):
        assert intervals.wilson_interval(0, total)[0] == 0
        assert intervals.wilson_interval(total, total)[1] == 1
    low, high = intervals.wilson_interval(10**9, 10**9)
    assert 0 < low <= high <= 1 and not math.isnan(low)
    for correct, total, confidence in [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 0.0)]:
        with pytest.raises(ValueError, match=r"0 <= correct <= total|confidence"):
            intervals.wilson_interval(correct, total, confidence)
