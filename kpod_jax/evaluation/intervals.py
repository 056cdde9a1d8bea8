"""Confidence intervals of an accuracy."""


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Computes Wilson's score interval of a proportion, without continuity correction.

    Returns:
      (low, high) within [0, 1]; (0, 1) if `total` is 0.

    Raises:
      ValueError: if not 0 <= correct <= total, or not 0 < confidence < 1.
    """
    from scipy import stats  # Slow to import.

    if not 0 <= correct <= total:
        raise ValueError(f"Expected 0 <= correct <= total, got correct={correct}, total={total}.")
    if not 0 < confidence < 1:
        raise ValueError(f"Expected a confidence strictly between 0 and 1, got {confidence}.")
    if total == 0:
        return 0.0, 1.0
    low, high = stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(low), float(high)
