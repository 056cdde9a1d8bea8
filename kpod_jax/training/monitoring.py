"""Monitoring of a training run: cost of its steps, a watchdog for hangs, and profiler traces."""

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

# Same as of a program that aborts; schedulers that restart after a crash restart here too.
EXIT_HUNG = 128 + signal.SIGABRT
# Steps before a trace starts: the first ones compile.
_WARMUP_STEPS = 10


class Window:
    """Cost of the steps since the last metrics line, without pauses such as validation."""

    def __init__(self) -> None:
        """Starts the first window."""
        peak = devices.lookup(jax.local_devices()[0].device_kind)
        self._peak = peak.peak_flops * jax.device_count() if peak else None
        self._restart()

    def _restart(self) -> None:
        self._start = self._last = time.monotonic()
        self._paused = self._waited = self._tokens = self._flops = 0.0
        self._step_seconds: list[float] = []

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the block as waiting for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Excludes the block, which is not training."""
        start = time.monotonic()
        yield
        elapsed = time.monotonic() - start
        self._paused += elapsed
        self._last += elapsed

    def add(self, tokens: float, flops: float) -> None:
        """Adds a finished step.

        Args:
          tokens: supervised tokens of the whole batch.
          flops: FLOPs that the model needs for it, forward and backward.
        """
        now = time.monotonic()
        self._step_seconds.append(now - self._last)
        self._last = now
        self._tokens += tokens
        self._flops += flops

    def values(self) -> dict[str, float]:
        """Returns the metrics of the window and starts a new one.

        Returns:
          tokens_per_second; flops_per_second; mfu, the fraction of all devices' peak, if known;
          data_wait_share; step_seconds_p50 and _p95, between ends of steps as seen by the host;
          hbm_peak_bytes of the first local device, if it reports that.
        """
        seconds = max(time.monotonic() - self._start - self._paused, 1e-9)
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
    """Ends the process after a long time without progress, as when another host hangs.

    A collective waits forever for a missing process, so all processes would hang, and cost money.
    Use it as a context manager.
    """

    def __init__(self, seconds: float, what: str, end: Callable[[int], object] = os._exit) -> None:
        """Initializes the watchdog, which starts on `with`.

        Args:
          seconds: time without a `beat` after which the process is ended; 0: never.
          what: what is watched, for the message.
          end: called with EXIT_HUNG; no exception can end a hung thread.
        """
        self._seconds, self._what, self._end = seconds, what, end
        self._state, self._last = "start", time.monotonic()
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
        """Reports progress, and the state that was reached."""
        self._state, self._last = state, time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(min(1.0, self._seconds / 4)):
            if time.monotonic() - self._last < self._seconds:
                continue
            print(
                f"\nerror: {self._what}: no progress for {self._seconds:.0f} s in process "
                f"{jax.process_index()} of {jax.process_count()}; last reached: {self._state}. "
                "Another process or the network may hang: check the other processes' logs for "
                "one that stopped elsewhere. The same command resumes from the last checkpoint; "
                "monitoring.hang_seconds sets the limit. Stack of each thread:",
                file=sys.stderr,
                flush=True,
            )
            with contextlib.suppress(OSError, ValueError):  # Standard error may not be a real file.
                faulthandler.dump_traceback(sys.stderr)
            self._end(EXIT_HUNG)
            return


class Tracer:
    """A JAX profiler trace of a few steps, for TensorBoard's profile tab or Perfetto."""

    def __init__(self, directory: files.PathLike, first_step: int, steps: int) -> None:
        """Chooses the steps to trace.

        Args:
          directory: destination of the trace.
          first_step: first training step of this process.
          steps: number of steps to trace; 0: none.
        """
        self._directory = directory
        self._start = first_step + _WARMUP_STEPS
        self._stop = self._start + steps
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def before(self, step: int) -> None:
        """Starts the trace if it begins at `step`; call before each step."""
        if step == self._start < self._stop:
            self._folder = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._folder.name)

    def after(self, step: int, results: Any, *, last: bool) -> None:
        """Ends the trace if `step` is its last; call after each step is started.

        Args:
          step: the step.
          results: outputs of the step.
          last: whether it is the last step of the run.
        """
        if self._folder is None or (step < self._stop - 1 and not last):
            return
        jax.block_until_ready(results)
        jax.profiler.stop_trace()
        files.copy_folder(self._folder.name, self._directory)
        self._folder.cleanup()
        self._folder = None
