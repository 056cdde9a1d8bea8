"""Runs named jobs in processes, each on its part of the machine."""

import contextlib
import os
import pathlib
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

_POLL = 0.2  # Seconds between polls of the processes.
_GRACE = 60.0  # Seconds that a process has to end, for a last checkpoint.


class _Job(NamedTuple):
    process: subprocess.Popen[bytes]
    slot: int


def run_jobs(
    names: Sequence[str],
    command: Callable[[str], Sequence[str]],
    *,
    parallel: int = 1,
    log: Callable[[str], pathlib.Path | None] = lambda name: None,
    ready: Callable[[str, Collection[str]], bool] = lambda name, running: True,
    tell: Callable[[Collection[str], Mapping[str, int]], None] = lambda running, ended: None,
) -> dict[str, int]:
    """Runs a process for each name, starting the first ready job first.

    Args:
      names: names of the jobs, in starting order.
      command: returns the command of a job.
      parallel: number of concurrent processes, which divide cores and GPUs equally.
      log: returns the file for a job's output; None: this process's output.
      ready: returns whether a job may start next to the running ones. A job always starts if none
        is running.
      tell: called regularly with the running jobs and the exit codes of those that just ended.

    Returns:
      The exit code of each job; negative: the signal that ended it.
    """
    gpus = visible_gpus() if parallel > 1 else []
    waiting, running, codes = list(names), dict[str, _Job](), {}
    try:
        while waiting or running:
            ended = {}
            for name, job in list(running.items()):
                if (code := job.process.poll()) is not None:
                    ended[name] = codes[name] = code
                    del running[name]
            tell(list(running), ended)
            while len(running) < parallel:
                name = next((n for n in waiting if not running or ready(n, list(running))), None)
                if name is None:
                    break
                waiting.remove(name)
                slot = min(set(range(parallel)) - {job.slot for job in running.values()})
                environment = os.environ | gpu_environment(gpus, slot, parallel)
                running[name] = _Job(_start(command(name), environment, log(name)), slot)
                if parallel > 1:
                    _bind(running[name].process.pid, slot, parallel)
                tell(list(running), {})
            time.sleep(_POLL if running else 0)
    finally:
        _end([job.process for job in running.values()])
    return codes


def visible_gpus() -> list[str]:
    """Returns the usable NVIDIA GPUs, in the form of CUDA_VISIBLE_DEVICES."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")]
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return result.stdout.split()


def gpu_environment(gpus: Sequence[str], slot: int, parallel: int) -> dict[str, str]:
    """Returns environment variables that assign a process one GPU and part of its memory."""
    if not gpus:
        return {}
    gpu = slot % len(gpus)
    num_sharing = len(range(gpu, parallel, len(gpus)))
    variables = {"CUDA_VISIBLE_DEVICES": gpus[gpu]}
    if num_sharing > 1:
        variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / num_sharing:.3f}"
    return variables


def core_subset(cores: Collection[int], slot: int, parallel: int) -> set[int]:
    """Returns the cores of one of several processes: equally many for each, at least one."""
    ordered = sorted(cores)
    return set(ordered[slot::parallel]) or {ordered[slot % len(ordered)]}


def _bind(pid: int, slot: int, parallel: int) -> None:
    """Pins a process that just started, and all its future threads, to its cores."""
    if hasattr(os, "sched_setaffinity"):  # Linux only.
        with contextlib.suppress(ProcessLookupError):  # Already ended.
            os.sched_setaffinity(pid, core_subset(os.sched_getaffinity(0), slot, parallel))


def _start(
    command: Sequence[str], environment: Mapping[str, str], log: pathlib.Path | None
) -> subprocess.Popen[bytes]:
    if log is None:
        return subprocess.Popen(command, env=environment)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:  # A resumed run appends to its log.
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _GRACE
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
