"""Temporary data: in memory while it is small, then in a file that has no name."""

import contextlib
import mmap
import os
import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np
import numpy.typing as npt

from kpod_jax.utils.errors import UserError

_IN_MEMORY = 1 << 24  # Bytes.


def directory() -> str:
    """Returns TMPDIR if it is set, else /var/tmp, since /tmp may be in memory."""
    if not os.environ.get("TMPDIR") and os.access("/var/tmp", os.W_OK | os.X_OK):
        return "/var/tmp"
    return tempfile.gettempdir()


def open_file() -> IO[bytes]:
    """Returns an empty temporary file, which is removed when it is closed."""
    return tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=directory())


@contextlib.contextmanager
def reporting_errors() -> Iterator[None]:
    """Turns errors of a temporary file into a `UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot use a temporary file in {directory()}: {error.strerror or error}. Free some "
            "space there, or set the environment variable TMPDIR to another directory."
        ) from error


class ArrayFile:
    """A flat array that grows at its end."""

    def __init__(self, dtype: npt.DTypeLike = np.int32) -> None:
        """Creates an empty array."""
        self._file, self._size, self._dtype = open_file(), 0, np.dtype(dtype)

    def append(self, values: np.ndarray) -> None:
        """Adds values of any shape, in C order.

        Raises:
          UserError: there is no space for the temporary file.
        """
        data = np.asarray(values, self._dtype).tobytes()
        with reporting_errors():
            self._file.write(data)
        self._size += len(data)

    def array(self) -> np.ndarray:
        """Returns all values, one after the other, read-only; mapped into memory if they are many.

        Raises:
          UserError: there is no space for the temporary file.
        """
        with reporting_errors():
            if self._size <= _IN_MEMORY:
                self._file.seek(0)
                return np.frombuffer(self._file.read(), self._dtype)
            self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, self._dtype)
