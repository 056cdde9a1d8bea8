"""Sides that are measured in turn, and how many times faster one is than another."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

Run = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """The other side's time over ours: above 1 we are ahead.

    Attributes:
      median: of the rounds.
      low: least of them.
      high: largest of them.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def clock() -> Callable[[], float]:
    """Seconds of this process's processors on a CPU, where others may be at work; else of time."""
    return time.process_time if jax.default_backend() == "cpu" else time.perf_counter


def seconds(
    sides: Mapping[str, Run],
    rounds: int,
    warm_up: int = 2,
    now: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every round of every side: A, B, A, B, ...

    Args:
      sides: functions that return when their work is done.
      rounds: that are measured.
      warm_up: rounds before these, in which things are compiled.
      now: what seconds are read from; None: `clock()`.
    """
    now = now or clock()
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name, run in sides.items():
            began = now()
            run()
            if number >= warm_up:
                found[name].append(now() - began)
    return found


def ratio(ours: Sequence[float], other: Sequence[float]) -> Ratio:
    """Of rounds that were measured in turn."""
    found = [b / a for a, b in zip(ours, other, strict=True)]
    return Ratio(statistics.median(found), min(found), max(found))


def growth(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent p of cost = c · size ** p, by least squares of the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])
