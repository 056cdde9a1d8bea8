"""Stores the teacher's answers, one per line, synced to disk as they arrive.

An interrupted run loses only the requests in flight. Rows hold the output of
`completions.read_completion`, and `id`, `sample` and `question`, the digest of the question's text.
"""

import fcntl
import json
import os
import pathlib
from typing import IO, Any

from kpod_jax.data import jsonl
from kpod_jax.utils.errors import UserError

Key = tuple[str, int, str]


class Ledger:
    """Append-only file of answers, locked by one process at a time.

    with Ledger(path) as ledger:
        ledger.append(row)

    Attributes:
      rows: all rows, in order of arrival.
      prompt_tokens: total over all rows, where reported by the endpoint.
      completion_tokens: total over all rows, where reported by the endpoint.
      broken: number of unreadable lines, such as a partially written one; they stay in the file.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Initializes the ledger; the file is opened and read on entering the context.

        Args:
          path: path of the file.
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
            raise self._write_error(error) from error
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
        """Appends a row and syncs it to disk.

        Raises:
          UserError: the row cannot be written.
        """
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        assert self._file is not None
        try:
            self._file.write(line.encode("utf-8"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._write_error(error) from error
        self._add(row)

    def answered(self) -> dict[Key, dict[str, Any]]:
        """Returns the first answer to each sample, without rows with an error."""
        answers: dict[Key, dict[str, Any]] = {}
        for row in self.rows:
            if row["error"] is None:
                answers.setdefault(key_of(row), row)
        return answers

    def errors(self) -> dict[Key, dict[str, Any]]:
        """Returns the last row with an error of each sample, even if it has been answered since."""
        return {key_of(row): row for row in self.rows if row["error"] is not None}

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.prompt_tokens += row["prompt_tokens"] or 0
        self.completion_tokens += row["completion_tokens"] or 0

    def _lock(self, file: IO[bytes]) -> None:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise UserError(
                f"{self.path} is being written by another process. Wait for it or stop it: two "
                "processes would send, and pay for, every request twice."
            ) from error
        except OSError:  # Some network file systems do not support locks.
            pass

    def _end_line(self, file: IO[bytes]) -> None:
        """Ends a partially written last line, so the next row starts on a new line."""
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")  # Append mode always writes at the end.
                file.flush()

    def _write_error(self, error: OSError) -> UserError:
        return UserError(
            f"Cannot write {self.path}: {error.strerror or error}. Earlier answers are kept; free "
            "some space or fix the permissions, then rerun the same command."
        )


def key_of(row: dict[str, Any]) -> Key:
    """Returns the key of a row."""
    return row["id"], row["sample"], row["question"]


def _is_answer(row: dict[str, Any]) -> bool:
    """Returns whether a line has all fields, with the right types."""
    counts = (row.get("prompt_tokens", ""), row.get("completion_tokens", ""))
    return (
        all(isinstance(row.get(name), str) for name in ("id", "question", "text"))
        and isinstance(row.get("thought", ""), str)
        and isinstance(row.get("sample"), int)
        and all(isinstance(row.get(name, 0), str | None) for name in ("finish", "error", "model"))
        and all(isinstance(count, int | None) for count in counts)
    )
