"""The interval of an accuracy."""


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share, without continuity correction.

    Returns:
      (low, high) within [0, 1]; (0, 1), which says that nothing is known, for `total` 0.

    Raises:
      ValueError: not 0 <= correct <= total, or not 0 < confidence < 1.
    """
    from scipy import stats  # It takes a while to import.

    if not 0 <= correct <= total:
        raise ValueError(f"{correct} of {total} answers cannot be correct")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence} is not between 0 and 1")
    if total == 0:
        return 0.0, 1.0
    low, high = stats.binomtest(correct, total).proportion_ci(confidence, method="wilson")
    return float(low), float(high)
