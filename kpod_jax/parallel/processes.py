"""The processes of a run: how they find each other, who writes, and how they are told to end.

A run is one program in one process or in many, each with devices of its own. All of them go through
the same stages; the first alone writes files, which the others read. So the work directory must be
one that all of them see.
"""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

# What the shell and schedulers call "ended by SIGTERM". The same command goes on from there.
EXIT_PREEMPTED = 128 + signal.SIGTERM
# Calls of `reached_preemption_sync_point`, which wants numbers that only rise.
_CALLS = itertools.count()


class Preempted(BaseException):
    """The run was told to end, and can be gone on with. No `except Exception` keeps it."""


def join(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the run's other processes; call it before anything is put on a device.

    On Cloud TPU (VM slices and GKE), in a SLURM step and under Open MPI all is found out by JAX.

    Args:
      coordinator: "HOST:PORT" of the first process, by hand; "off" looks for no others.
      num_processes: of all, with a coordinator.
      process_id: of this one, from 0, with a coordinator.

    Raises:
      UserError: a flag is missing or wrong, or the others cannot be reached.
    """
    given = num_processes or process_id >= 0
    if coordinator in ("", "off") and given:
        raise UserError("--num_processes and --process_id need --coordinator=HOST:PORT.")
    if coordinator == "off":
        return
    if coordinator and not 0 <= process_id < num_processes:
        raise UserError(
            f"--coordinator={coordinator} with --num_processes={num_processes} and --process_id="
            f"{process_id}: expected the number of all processes, and this one's, from 0."
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
    except ValueError as error:  # What it says where nothing tells of other processes.
        if coordinator:
            raise UserError(f"--coordinator={coordinator}: {error}") from error
        return
    except RuntimeError as error:  # jax.errors.JaxRuntimeError is one.
        raise UserError(
            f"This process cannot join the others: {error}\nStart all of them at about the same "
            "time, see that the first one's port can be reached, or run one process alone with "
            "--coordinator=off."
        ) from error
    files.set_writer(jax.process_index() == 0)


def barrier(name: str) -> None:
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def log(line: str) -> None:
    """Prints a line for the user, once for all processes."""
    if jax.process_index() == 0:
        print(line, flush=True)


def first_alone(work: Callable[[], str]) -> str:
    """Does work of the host in the first process, while the others wait.

    Returns:
      What the work returns; in other processes "".

    Raises:
      UserError: as the work does; the others are told that it did.
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
            raise UserError("The first process has stopped; its message says why.")
    if error is not None:
        raise error
    return result


@contextlib.contextmanager
def listening() -> Iterator[Callable[[], bool]]:
    """Lets a loop end well: inside, SIGTERM is only noted.

    Yields:
      A function to be called after every step, in all processes as often: whether to save and raise
      `Preempted` now. It says so in all processes after the same step, whichever of them was told.
    """
    if jax.process_count() > 1:  # JAX's own handler has passed the word on to all of them.
        yield lambda: multihost_utils.reached_preemption_sync_point(next(_CALLS))
        return
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def raise_on_sigterm() -> None:
    """Makes SIGTERM raise `Preempted`, wherever the program is, but for loops that are `listening`.

    With several processes it is left to JAX, which has to pass the word on.
    """

    def handle(*_: object) -> None:
        raise Preempted("SIGTERM")

    if jax.distributed.is_initialized():
        return
    signal.signal(signal.SIGTERM, handle)
