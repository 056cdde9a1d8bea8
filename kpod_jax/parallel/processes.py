"""The processes of a run: how they connect, which one writes files, and how they are preempted.

A run is one program in one or more processes, each with separate devices. All processes go through
the same stages. Only the first one writes files, and the others read them, so the work directory
must be visible to all of them.
"""

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from kpod_jax.utils import files, locks, signals
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.signals import Preempted

# The exit code for "ended by SIGTERM" in shells and schedulers. The same command resumes the run.
EXIT_PREEMPTED = Preempted().exit_code
# Numbers for `reached_preemption_sync_point`, which must increase with every call.
_CALLS = itertools.count()


def join(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the other processes of the run; call it before using any device.

    On Cloud TPU (VM slices and GKE), in a SLURM step and under Open MPI, JAX detects all settings.

    Args:
      coordinator: "HOST:PORT" of the first process, to connect manually; "" detects other
        processes; "off" runs without others.
      num_processes: number of processes, given with a coordinator.
      process_id: number of this process, from 0, given with a coordinator.

    Raises:
      UserError: a flag is missing or invalid, or the other processes cannot be reached.
    """
    needs_coordinator = num_processes or process_id >= 0
    if coordinator in ("", "off") and needs_coordinator:
        raise UserError("--num_processes and --process_id need --coordinator=HOST:PORT.")
    if coordinator == "off":
        return
    if coordinator and not 0 <= process_id < num_processes:
        raise UserError(
            f"--coordinator={coordinator} with --num_processes={num_processes} and --process_id="
            f"{process_id}: expected 0 <= process_id < num_processes."
        )
    options = {}
    if coordinator:
        options = {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
        }
    try:
        jax.distributed.initialize(**options)
    except ValueError as error:  # Without a coordinator: JAX detected no other processes.
        if coordinator:
            raise UserError(f"--coordinator={coordinator}: {error}") from error
        return
    except RuntimeError as error:  # Includes jax.errors.JaxRuntimeError.
        raise UserError(
            f"This process cannot join the others: {error}\nStart all of them at about the same "
            "time and make sure that the first one's port is reachable, or run a single process "
            "with --coordinator=off."
        ) from error
    files.set_writer(jax.process_index() == 0)


def barrier(name: str) -> None:
    """Waits until all processes have reached this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def log(line: str) -> None:
    """Prints a line for the user, in the first process only."""
    if jax.process_index() == 0:
        print(line, flush=True)


def run_on_first(work: Callable[[], str]) -> str:
    """Runs `work`, which uses only the host, in the first process while the others wait.

    Returns:
      The result of `work` in the first process, "" in the others.

    Raises:
      Exception: whatever `work` raises, in the first process.
      UserError: in the other processes, if `work` failed.
    """
    result, error = "", None
    if jax.process_index() == 0:
        try:
            result = work()
        except Exception as raised:
            error = raised
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.int32(error is not None))
        if failed and error is None:
            raise UserError("The first process failed; see its error message.")
    if error is not None:
        raise error
    return result


@contextlib.contextmanager
def locked(directory: files.PathLike) -> Iterator[None]:
    """Locks a directory against other runs; the first process holds the lock for all.

    Raises:
      UserError: another run holds the lock.
    """
    with contextlib.ExitStack() as stack:
        if note := run_on_first(lambda: stack.enter_context(locks.locked(directory))):
            log(note)
        yield


@contextlib.contextmanager
def defer_sigterm() -> Iterator[Callable[[], bool]]:
    """Lets a loop finish its step on SIGTERM or Ctrl-C (`utils.signals.deferred`).

    Yields:
      A function that returns whether to save and raise `Preempted` now. All processes must call it
      after every step; it returns True in all of them after the same step, whichever process got
      the signal.
    """
    if jax.process_count() > 1:  # JAX's handler forwards the signal to all processes.
        yield lambda: multihost_utils.reached_preemption_sync_point(next(_CALLS))
        return
    with signals.deferred() as was_signalled:
        yield was_signalled


def raise_on_sigterm() -> None:
    """Makes SIGTERM raise `Preempted` anywhere except inside `defer_sigterm`.

    With several processes, JAX keeps handling the signal, since it has to forward it.
    """
    if not jax.distributed.is_initialized():
        signals.raise_on(signal.SIGTERM)
