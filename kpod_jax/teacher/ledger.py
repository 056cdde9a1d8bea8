"""Every answer that came, one a line, on the disk before the next is waited for.

A run that is killed loses only what was under way. Rows are what `completions.read_completion`
tells, with `id`, `sample` and `question`, the digest of the question's text.
"""

import json
import os
import pathlib
from typing import IO, Any

from kpod_jax.data import jsonl
from kpod_jax.utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None

Key = tuple[str, int, str]


class Ledger:
    """A file of answers that is only ever added to; one process at a time writes it.

    with Ledger(path) as ledger:
        ledger.append(row)

    Attributes:
      rows: all of them, in the order of their arrival.
      prompt_tokens: of all rows, as far as the endpoint told them.
      completion_tokens: likewise.
      broken: lines that cannot be read, such as one that a kill cut; they are left where they are.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Reads what is there.

        Raises:
          UserError: the file cannot be read.
        """
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.prompt_tokens = self.completion_tokens = 0
        self.broken = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "Ledger":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
            self._lock(self._file)
            self._end_line(self._file)
        except OSError as error:
            raise self._failure(error) from error
        for _, row, _ in jsonl.read_rows(self.path):
            if row is None or not _is_answer(row):
                self.broken += 1
            else:
                self._add(row)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row; it is on the disk when this returns.

        Raises:
          UserError: it cannot be written.
        """
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        assert self._file is not None
        try:
            self._file.write(line.encode("utf-8"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failure(error) from error
        self._add(row)

    def answered(self) -> dict[Key, dict[str, Any]]:
        """The first answer of each sample; those that came without a text are none."""
        found: dict[Key, dict[str, Any]] = {}
        for row in self.rows:
            if row["error"] is None:
                found.setdefault(key_of(row), row)
        return found

    def errors(self) -> dict[Key, str]:
        """What was last wrong with each sample, were it answered since or not."""
        return {key_of(row): row["error"] for row in self.rows if row["error"] is not None}

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.prompt_tokens += row["prompt_tokens"] or 0
        self.completion_tokens += row["completion_tokens"] or 0

    def _lock(self, file: IO[bytes]) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise UserError(
                f"{self.path} is being written by another process. Wait for it, or end it: two "
                "would ask, and pay for, everything twice."
            ) from error
        except OSError:  # Some network file systems cannot lock; they do without.
            pass

    def _end_line(self, file: IO[bytes]) -> None:
        """What a kill left of a last line is not to swallow the next one."""
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")  # At the end, wherever was read.
                file.flush()

    def _failure(self, error: OSError) -> UserError:
        return UserError(
            f"Cannot write {self.path}: {error.strerror or error}. The answers before are kept; "
            "free some space or mend the permissions, then run the same command again."
        )


def key_of(row: dict[str, Any]) -> Key:
    """Of a row of the file."""
    return row["id"], row["sample"], row["question"]


def _is_answer(row: dict[str, Any]) -> bool:
    """Whether a line has the fields, of the types that they are written with."""
    counts = (row.get("prompt_tokens", ""), row.get("completion_tokens", ""))
    return (
        all(isinstance(row.get(name), str) for name in ("id", "question", "text"))
        and isinstance(row.get("sample"), int)
        and all(isinstance(row.get(name, 0), str | None) for name in ("finish", "error", "model"))
        and all(isinstance(count, int | None) for count in counts)
    )
