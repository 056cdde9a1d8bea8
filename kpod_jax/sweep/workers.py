"""Processes that work off a list of named jobs, each with its share of the machine."""

import contextlib
import os
import pathlib
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

_POLL = 0.2  # Seconds between looks at the processes.
_GRACE = 60.0  # Seconds that a process may take to end, for a last checkpoint.


class _Job(NamedTuple):
    process: subprocess.Popen[bytes]
    slot: int


def work_off(
    names: Sequence[str],
    command: Callable[[str], Sequence[str]],
    *,
    parallel: int = 1,
    log: Callable[[str], pathlib.Path | None] = lambda name: None,
    ready: Callable[[str, Collection[str]], bool] = lambda name, at_work: True,
    tell: Callable[[Collection[str], Mapping[str, int]], None] = lambda at_work, ended: None,
) -> dict[str, int]:
    """Runs a process for each name, the first that is ready first.

    Args:
      names: of the jobs, in the order in which they are begun.
      command: of a job's process.
      parallel: processes at a time, each with as large a share of the cores and GPUs.
      log: the file that a process writes its output to; None: where this process writes its own.
      ready: whether a job may begin beside those at work. Beside none, every job begins.
      tell: is told, now and then, which are at work and which have just ended, with their codes.

    Returns:
      The exit code of each; negative: the signal that ended it.
    """
    gpus = visible_gpus() if parallel > 1 else []
    waiting, at_work, codes = list(names), dict[str, _Job](), {}
    try:
        while waiting or at_work:
            ended = {}
            for name, job in list(at_work.items()):
                if (code := job.process.poll()) is not None:
                    ended[name] = codes[name] = code
                    del at_work[name]
            tell(list(at_work), ended)
            while len(at_work) < parallel:
                name = next((n for n in waiting if not at_work or ready(n, list(at_work))), None)
                if name is None:
                    break
                waiting.remove(name)
                slot = min(set(range(parallel)) - {job.slot for job in at_work.values()})
                environment = os.environ | share_of_gpus(gpus, slot, parallel)
                at_work[name] = _Job(_start(command(name), environment, log(name)), slot)
                if parallel > 1:
                    _bind(at_work[name].process.pid, slot, parallel)
                tell(list(at_work), {})
            time.sleep(_POLL if at_work else 0)
    finally:
        _end([job.process for job in at_work.values()])
    return codes


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs that processes may use, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [part.strip() for part in named.split(",") if part.strip() not in ("", "-1")]
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return found.stdout.split()


def share_of_gpus(gpus: Sequence[str], slot: int, parallel: int) -> dict[str, str]:
    """Environment variables that give a process one GPU, and its share of that one's memory."""
    if not gpus:
        return {}
    mine = slot % len(gpus)
    sharing = len(range(mine, parallel, len(gpus)))
    found = {"CUDA_VISIBLE_DEVICES": gpus[mine]}
    if sharing > 1:
        found["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / sharing:.3f}"
    return found


def share_of_cores(cores: Collection[int], slot: int, parallel: int) -> set[int]:
    """The cores of one of several processes: as many for each, never none."""
    ordered = sorted(cores)
    return set(ordered[slot::parallel]) or {ordered[slot % len(ordered)]}


def _bind(pid: int, slot: int, parallel: int) -> None:
    """Keeps a process that has just begun, and all its threads to come, to its share of cores."""
    if hasattr(os, "sched_setaffinity"):  # Linux alone.
        with contextlib.suppress(ProcessLookupError):  # It has ended already.
            os.sched_setaffinity(pid, share_of_cores(os.sched_getaffinity(0), slot, parallel))


def _start(
    command: Sequence[str], environment: Mapping[str, str], log: pathlib.Path | None
) -> subprocess.Popen[bytes]:
    if log is None:
        return subprocess.Popen(command, env=environment)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:  # A run that goes on adds to what it wrote before.
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    until = time.monotonic() + _GRACE
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
