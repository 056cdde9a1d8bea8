"""Sequences of records that stay on disk: only their places in a file are in memory."""

import io
import itertools
import json
import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, TypeVar, overload

import numpy as np

from kpod_jax.data import scratch
from kpod_jax.data.records import Record, iterate_records, read_records
from kpod_jax.utils import files

CHUNK = 2_000  # Records to process at a time.
_CHUNK = 256  # Records to read or write at a time.
T = TypeVar("T")


def chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """Yields consecutive items in lists of at most `size`."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


class RecordStore(Sequence[Record]):
    """Records in a file, one JSON line each, parsed whenever they are read."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        """Stores records in a temporary file."""
        self._file: IO[bytes] = scratch.open_file()
        self._starts = array("q")
        self._end = 0
        self._lock = threading.Lock()  # Threads share the file's position.
        self.extend(records)

    @classmethod
    def open(cls, path: files.PathLike) -> "RecordStore":
        """Opens a file that `write_records` wrote, after checking every line.

        Raises:
          UserError: as for `read_records`.
        """
        ids = np.fromiter((hash(record.id) for record in iterate_records(path)), np.int64)
        path, store = files.as_path(path), cls()
        file = io.BytesIO(path.read_bytes()) if files.is_remote(path) else path.open("rb")
        for line in file:
            if line.strip():
                store._starts.append(store._end)
            store._end += len(line)
        if len(store) != len(ids) or len(np.unique(ids)) < len(ids):
            file.close()
            return cls(read_records(path))  # Names equal ids, and knows other line ends.
        store._file = file
        return store

    def extend(self, records: Iterable[Record]) -> None:
        """Adds records at the end.

        Raises:
          UserError: there is no space for the temporary file.
        """
        for part in chunks(records, _CHUNK):
            lines = [json.dumps(record.to_json()).encode() + b"\n" for record in part]
            with self._lock, scratch.reporting_errors():
                self._file.seek(self._end)
                self._file.writelines(lines)
            for line in lines:
                self._starts.append(self._end)
                self._end += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        chosen = self._starts[index]
        if isinstance(index, slice):
            return self._read(chosen)  # pyright: ignore[reportArgumentType]
        return self._read([chosen])[0]  # pyright: ignore[reportArgumentType]

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), _CHUNK):
            yield from self[start : start + _CHUNK]

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def _read(self, starts: Iterable[int]) -> list[Record]:
        lines = []
        with self._lock, scratch.reporting_errors():
            for start in starts:
                self._file.seek(start)
                lines.append(self._file.readline())
        return [Record.from_json(json.loads(line)) for line in lines]
