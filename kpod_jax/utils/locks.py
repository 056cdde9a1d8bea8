"""Locks on directories: one run at a time, with who holds a lock and since when.

A lock is the file `.lock`. On a local disk the operating system locks the file too and unlocks it
when the process ends, however it ends. Buckets and some network file systems cannot do that, so the
holder also rewrites the file every few seconds: a lock that stays the same belongs to a process
that is gone.
"""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import fsspec

from kpod_jax.utils import files
from kpod_jax.utils.errors import LockedError, UserError
from kpod_jax.utils.printable import message, printable

_NAME = ".lock"
# Seconds between signs of life; without one for so long, a holder elsewhere is gone.
_BEAT, _GONE = 10.0, 60.0
# By clocks that may differ, without watching it.
_LONG_GONE = 600.0
# Seconds after which a writer sees whether another one wrote at the same time.
_SETTLE = 1.0
_MAX_TEXT = 160  # Characters of a command.
_BYTES = 4096  # Size of a file on a disk, so that it is never half of an old one.
_LOST = 2  # Exit status of a process that lost its lock.


@contextlib.contextmanager
def locked(directory: files.PathLike) -> Iterator[str]:
    """Locks an existing directory against other processes.

    Yields:
      A line for the user about a lock that was left behind; "" if there was none.

    Raises:
      LockedError: another process holds the lock; the message says which.
      UserError: the directory cannot be locked.
    """
    root = os.fspath(directory).rstrip("/")
    try:
        file = (_BucketFile if files.is_remote(root) else _LocalFile)(f"{root}/{_NAME}")
        try:
            note = _claim(file, root)
        except BaseException:
            file.close()
            raise
    except OSError as error:
        raise UserError(
            f"Cannot lock {root}: {error.strerror or error}. Free some space, fix the "
            "permissions or choose another --workdir."
        ) from error
    with _beating(file, root):
        yield note


def _claim(file: "_LocalFile | _BucketFile", root: str) -> str:
    """Writes this process into the file; returns a note on the previous holder, or ""."""
    previous = file.read()
    if file.is_busy or (previous and not _is_left_behind(file, previous)):
        raise LockedError(
            f"{root} is in use by {_describe(previous)}. Wait for it, or choose another "
            f"--workdir.{_doubt(previous, root)}"
        )
    file.mine = _here()
    file.write()
    if not file.excludes:
        time.sleep(_SETTLE)
        if _token(current := file.read()) != file.mine["token"]:
            raise LockedError(
                f"{root} was just taken by {_describe(current)}. Wait for it, or choose another "
                "--workdir."
            )
    if not previous:
        return ""
    return f"Took over the lock on {root} from {_describe(previous)}, which is gone."


def _is_left_behind(file: "_LocalFile | _BucketFile", holder: dict[str, Any]) -> bool:
    """Returns whether the holder of a lock that is not busy is gone."""
    is_here = holder.get("machine") == _machine()
    if file.excludes and (is_here or "machine" not in holder):
        return True
    if (is_here and not _is_alive(holder.get("pid"))) or _age(holder) > _LONG_GONE:
        return True
    # Clocks of machines differ, so watch it.
    text = f"Waiting up to {_GONE:.0f} s for a sign of life of {_describe(holder)}."
    print(message(text), flush=True)
    until = time.monotonic() + _GONE
    while time.monotonic() < until:
        time.sleep(_GONE / 60)
        if (current := file.read()) != holder:
            return not current  # Released meanwhile.
    return True


@contextlib.contextmanager
def _beating(file: "_LocalFile | _BucketFile", root: str) -> Iterator[None]:
    """Rewrites the file now and then, from another thread, while the block runs; then releases it.

    If another process took the lock over, this one ends at once, before it overwrites anything.
    """
    ended, in_use = threading.Event(), threading.Lock()

    def beat() -> None:
        while not ended.wait(_BEAT):
            with in_use:
                if ended.is_set():
                    return
                with contextlib.suppress(Exception):  # The network or the disk may be away.
                    current = file.read()
                    if current and _token(current) != file.mine["token"]:
                        _end(root, current)
                    file.write()

    threading.Thread(target=beat, name="lock", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        # A thread that hangs in the file keeps it: its descriptor must not become another file's.
        if in_use.acquire(timeout=_BEAT):
            file.clear()
            file.close()


def _end(root: str, holder: dict[str, Any]) -> None:
    """Ends this process, which another one has replaced."""
    text = (
        f"error: {root} was taken over by {_describe(holder)}, because this process gave no sign "
        "of life for too long. This process ends now."
    )
    print(message(text), file=sys.stderr, flush=True)
    os._exit(_LOST)  # A signal would let the main thread finish its step and save.


class _LocalFile:
    """The file of a lock on a disk.

    Attributes:
      excludes: whether the operating system locks it, so that a free lock has no holder here.
      is_busy: whether another process has locked it.
      mine: what this process writes into it.
    """

    def __init__(self, path: str) -> None:
        self._path = pathlib.Path(path)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.excludes, self.is_busy = True, False
        self.mine: dict[str, Any] = {}
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.is_busy = True
        except OSError:  # Some network file systems do not support locks.
            self.excludes = False

    def read(self) -> dict[str, Any]:
        """Returns the holder; {} if there is none."""
        try:
            return _parse(self._path.read_bytes())
        except FileNotFoundError:
            return {}

    def write(self) -> None:
        """Writes this process and the time. In place, as the file itself is locked."""
        data = json.dumps(self.mine | {"alive": time.time()}).encode().ljust(_BYTES)
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, data)
        os.ftruncate(self._file, len(data))

    def clear(self) -> None:
        """Says that there is no holder."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)

    def close(self) -> None:
        """Unlocks the file."""
        os.close(self._file)


class _BucketFile:
    """The object of a lock in a bucket; see `_LocalFile`."""

    excludes, is_busy = False, False

    def __init__(self, path: str) -> None:
        self._system, self._name = fsspec.url_to_fs(path)
        self.mine: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """Returns the holder; {} if there is none."""
        try:
            return _parse(self._system.cat_file(self._name))
        except FileNotFoundError:
            return {}

    def write(self) -> None:
        """Writes this process and the time."""
        data = json.dumps(self.mine | {"alive": time.time()}).encode()
        self._system.pipe_file(self._name, data)

    def clear(self) -> None:
        """Says that there is no holder."""
        with contextlib.suppress(OSError):
            self._system.rm_file(self._name)

    def close(self) -> None:
        """Does nothing: there is nothing to unlock."""


def _parse(data: bytes) -> dict[str, Any]:
    """Returns a holder; a damaged file has one that is unknown."""
    if not data.strip():
        return {}
    try:
        holder = json.loads(data)
    except (ValueError, RecursionError):
        holder = None
    return holder if isinstance(holder, dict) and holder else {"unknown": data[:80].hex()}


def _here() -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "command": shlex.join(sys.argv)[:_MAX_TEXT],
        "since": now.isoformat(" ", "seconds"),
        "machine": _machine(),
        "token": secrets.token_hex(8),
    }


def _machine() -> str:
    """Returns what tells machines, their restarts and containers apart, for process ids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # Linux only.
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return True  # Unknown.
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # Of another user.
        return True
    return True


def _token(holder: dict[str, Any]) -> object:
    return holder.get("token")


def _age(holder: dict[str, Any]) -> float:
    """Returns the seconds since a holder's last sign of life; 0 if unknown."""
    alive = holder.get("alive")
    return max(0.0, time.time() - alive) if isinstance(alive, int | float) else 0.0


def _describe(holder: dict[str, Any]) -> str:
    def text(key: str) -> str:
        return printable(holder.get(key, "unknown"))[:_MAX_TEXT]

    if "pid" not in holder:
        return "an unknown process"
    return f"process {text('pid')} on {text('host')} since {text('since')} ({text('command')})"


def _doubt(holder: dict[str, Any], root: str) -> str:
    if (age := _age(holder)) < _GONE:
        return ""
    return f" It gave no sign of life for {age:.0f} s; if it is gone, delete {root}/{_NAME}."
