"""Watching a training: what its steps cost, whether it still moves, and a trace on request."""

import contextlib
import faulthandler
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from kpod_jax.parallel import devices
from kpod_jax.utils import files

# As of a program that aborts; schedulers that start again after a crash do so here.
EXIT_HUNG = 128 + signal.SIGABRT
# Training steps before a trace begins: those at first compile.
_TRACED_FROM = 10


class Window:
    """What the steps since the last line of metrics cost; pauses, such as validations, left out."""

    def __init__(self) -> None:
        """Begins now."""
        peak = devices.lookup(jax.local_devices()[0].device_kind)
        self._peak = peak.peak_flops * jax.device_count() if peak else None
        self._restart()

    def _restart(self) -> None:
        self._began = self._last = time.monotonic()
        self._paused = self._waited = self._tokens = self._flops = 0.0
        self._step_seconds: list[float] = []

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Around what is no training."""
        began = time.monotonic()
        yield
        gone = time.monotonic() - began
        self._paused += gone
        self._last += gone

    def add(self, tokens: float, flops: float) -> None:
        """Counts a step that has ended.

        Args:
          tokens: supervised, of the whole batch.
          flops: that the model needs for it, forward and backward.
        """
        now = time.monotonic()
        self._step_seconds.append(now - self._last)
        self._last = now
        self._tokens += tokens
        self._flops += flops

    def values(self) -> dict[str, float]:
        """The metrics of the window, and begins a new one.

        Returns:
          Rates a second: tokens_per_second, flops_per_second; mfu, the share of all devices' peak,
          where that is known; data_wait_share; step_seconds_p50 and _p95, as the host saw steps
          end; hbm_peak_bytes of the first local device, where it tells.
        """
        seconds = max(time.monotonic() - self._began - self._paused, 1e-9)
        result = {
            "tokens_per_second": self._tokens / seconds,
            "flops_per_second": self._flops / seconds,
            "data_wait_share": self._waited / seconds,
        }
        if self._peak:
            result["mfu"] = self._flops / seconds / self._peak
        if self._step_seconds:
            p50, p95 = np.percentile(self._step_seconds, [50, 95])
            result |= {"step_seconds_p50": float(p50), "step_seconds_p95": float(p95)}
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            result["hbm_peak_bytes"] = float(memory["peak_bytes_in_use"])
        self._restart()
        return result


class Watchdog:
    """Ends the process when nothing has moved for long, as when another host hangs.

    A collective waits for ever for a process that does not come, so all of them would hang with it,
    and be paid for. Use it as a context manager.
    """

    def __init__(self, seconds: float, what: str, end: Callable[[int], object] = os._exit) -> None:
        """Watches from `with` on.

        Args:
          seconds: without a `beat` that are too many; 0: it does not watch.
          what: is watched, for the message.
          end: is called with EXIT_HUNG; a hung thread can be ended by no exception.
        """
        self._seconds, self._what, self._end = seconds, what, end
        self._state, self._last = "it began", time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._seconds:
            self._thread.join()

    def beat(self, state: str) -> None:
        """Says that it moves, and what was reached."""
        self._state, self._last = state, time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._last < self._seconds:
                continue
            print(
                f"\nerror: {self._what}: nothing has moved for {self._seconds:.0f} s in process "
                f"{jax.process_index()} of {jax.process_count()}; the last that was reached: "
                f"{self._state}. Another process or the link between them may hang: look at "
                "the other processes' logs for one that stands elsewhere. The same command goes "
                "on from the last checkpoint; monitoring.hang_seconds sets the time. Where each "
                "thread stands:",
                file=sys.stderr,
                flush=True,
            )
            with contextlib.suppress(OSError, ValueError):  # Standard error may be no real file.
                faulthandler.dump_traceback(sys.stderr)
            self._end(EXIT_HUNG)
            return


class Tracer:
    """A trace of JAX's profiler of some steps, for TensorBoard's profile tab or Perfetto."""

    def __init__(self, directory: files.PathLike, first_step: int, steps: int) -> None:
        """Traces nothing yet.

        Args:
          directory: for the trace.
          first_step: of this process's training.
          steps: to trace; 0: none.
        """
        self._directory = directory
        self._from = first_step + _TRACED_FROM
        self._to = self._from + steps
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def before(self, step: int) -> None:
        """Call it before a step is started."""
        if step == self._from < self._to:
            self._folder = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._folder.name)

    def after(self, step: int, results: Any, *, last: bool) -> None:
        """Call it after a step was started, with what it gives; `last` where no other follows."""
        if self._folder is None or (step < self._to - 1 and not last):
            return
        jax.block_until_ready(results)
        jax.profiler.stop_trace()
        files.copy_folder(self._folder.name, self._directory)
        self._folder.cleanup()
        self._folder = None
