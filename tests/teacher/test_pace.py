"""How fast requests are sent, by a clock that only moves when somebody sleeps."""

import asyncio
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpod_jax.teacher.ask import Pace


class Clock:
    """Time that passes for all sleepers at once, as fast as they want."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        self._sleepers.append((self.now + seconds, woken))
        await woken.wait()

    async def run(self, *tasks: asyncio.Task) -> None:
        while not all(task.done() for task in tasks):
            for _ in range(10):  # Everybody goes on to his next sleep.
                await asyncio.sleep(0)
            if self._sleepers:
                self._sleepers.sort(key=lambda sleeper: sleeper[0])
                self.now, woken = self._sleepers.pop(0)
                woken.set()


def sent(per_minute: float, workers: int, requests: int, takes: float = 0.0) -> list[float]:
    """When requests go out, of workers that each wait for their answer before the next."""
    clock, times = Clock(), []

    async def work(pace: Pace) -> None:
        while len(times) < requests:
            await pace.turn()
            times.append(clock())
            await clock.sleep(takes)

    async def all_of_them() -> None:
        pace = Pace(per_minute, clock, clock.sleep)
        await clock.run(*(asyncio.create_task(work(pace)) for _ in range(workers)))

    asyncio.run(all_of_them())
    return times[:requests]


def test_requests_are_evenly_spaced_however_many_ask():
    assert sent(per_minute=30, workers=4, requests=5) == [0, 2, 4, 6, 8]


def test_slow_answers_are_not_made_up_for_by_a_rush():
    assert sent(per_minute=30, workers=1, requests=4, takes=7) == [0, 7, 14, 21]


def test_no_limit_never_sleeps():
    assert sent(per_minute=0, workers=3, requests=6) == [0] * 6


@given(st.integers(1, 600), st.integers(1, 8), st.sampled_from([0.0, 0.5, 3.0]))
def test_no_minute_has_more_than_the_limit(per_minute, workers, takes):
    times = sorted(sent(per_minute, workers, 2 * per_minute if per_minute < 50 else 100, takes))
    for i, time in enumerate(times[:-per_minute]):
        assert times[i + per_minute] - time >= 60 - 1e-6


@pytest.mark.parametrize(
    ("code", "header", "held"),
    [
        (429, "7", 7.0),
        (503, "0.5", 0.5),
        (429, None, 0.0),
        (429, "Wed, 21 Oct 2037 07:28:00 GMT", 0.0),
        (429, "nan", 0.0),
        (429, "-3", 0.0),
        (429, "99999", 0.0),  # The request fails; the next run asks for it.
        (200, "7", 0.0),
    ],
)
def test_a_throttling_response_holds_the_next_request(code, header, held):
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def run() -> None:
        pace = Pace(0, lambda: 100.0, sleep)
        headers = {} if header is None else {"retry-after": header}
        await pace.heed(types.SimpleNamespace(status_code=code, headers=headers))
        await pace.turn()

    asyncio.run(run())
    assert slept == ([held] if held else [])
