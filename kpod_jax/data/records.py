"""Records and ragged arrays, the data types shared by all packages.

A record is a question, a teacher's rationale split into steps, and the answer.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kpod_jax.data import jsonl
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.printable import printable


@dataclasses.dataclass(frozen=True)
class Record:
    """One example.

    Attributes:
      id: unique within the data set; identifies the example in all messages and files.
      question: x in the paper.
      steps: the rationale r, split into steps. Each step keeps its trailing whitespace, so
        `"".join(steps)` is exactly the rationale.
      answer: y, as it should be generated.
      keypoints: character spans (start, end) of the rationale that determine the answer; None
        except in the built-in task.
      hardness: true difficulty of each step, higher is harder; None except in the built-in task.
    """

    id: str
    question: str
    steps: tuple[str, ...]
    answer: str
    keypoints: tuple[tuple[int, int], ...] | None = None
    hardness: tuple[float, ...] | None = None

    @property
    def rationale(self) -> str:
        """The whole rationale."""
        return "".join(self.steps)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as a dictionary, without those that are None."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Record":
        """Builds a record from the output of `to_json`.

        Raises:
          KeyError, TypeError: a field is missing or has the wrong type.
        """
        keypoints, hardness = value.get("keypoints"), value.get("hardness")
        return cls(
            id=str(value["id"]),
            question=value["question"],
            steps=tuple(value["steps"]),
            answer=value["answer"],
            keypoints=None if keypoints is None else tuple((int(a), int(b)) for a, b in keypoints),
            hardness=None if hardness is None else tuple(float(h) for h in hardness),
        )


@dataclasses.dataclass(frozen=True)
class Rejected:
    """A record that cannot be used.

    Attributes:
      id: id of the record, or its file and line if it has none.
      reason: what is wrong with it, for the user.
    """

    id: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Loaded:
    """One split of a data set.

    Attributes:
      records: usable records.
      broken: invalid records, such as unreadable lines.
      skipped: valid records that are left out, such as questions without a usable rationale.
      other_split_ids: ids of records in other splits, if loaded.
      other_split_questions: questions of records in other splits, if loaded.
      extra_rationales: further rationales of a record's question, as records, by record id.
      notes: notes for the user.
    """

    records: Sequence[Record]
    broken: list[Rejected] = dataclasses.field(default_factory=list)
    skipped: list[Rejected] = dataclasses.field(default_factory=list)
    other_split_ids: set[str] = dataclasses.field(default_factory=set)
    other_split_questions: list[str] = dataclasses.field(default_factory=list)
    extra_rationales: dict[str, list[Record]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Ragged:
    """N arrays of different lengths stored as one flat array; `ragged[i]` is a view of array i.

    Attributes:
      values: [sum of lengths, ...], any dtype.
      offsets: [N + 1] int64, from 0 to `len(values)`, nondecreasing.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_list(cls, arrays: Sequence[Any], dtype: Any = None) -> "Ragged":
        """Concatenates N sequences."""
        arrays = [np.asarray(array, dtype) for array in arrays]
        values = np.concatenate(arrays) if arrays else np.zeros(0, dtype)
        return cls.from_lengths(values, [len(array) for array in arrays])

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: npt.ArrayLike) -> "Ragged":
        """Splits concatenated values by the arrays' lengths."""
        return cls(values, offsets_of(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        """Iterates over the arrays in order."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Lengths of the arrays, [N] int64."""
        return np.diff(self.offsets)

    def nonfinite(self) -> list[int]:
        """Returns the indices of the arrays that hold NaN or infinity."""
        flat = np.flatnonzero(~np.isfinite(self.values))
        return np.unique(np.searchsorted(self.offsets, flat, side="right") - 1).tolist()


def as_ragged(arrays: "Ragged | Sequence[npt.ArrayLike] | None") -> "Ragged | None":
    """Converts a sequence of arrays to float32 `Ragged`; `Ragged` and None are returned as is."""
    if arrays is None or isinstance(arrays, Ragged):
        return arrays
    return Ragged.from_list([np.asarray(array) for array in arrays], np.float32)


def offsets_of(lengths: npt.ArrayLike) -> np.ndarray:
    """Returns [N + 1] int64, the start of each of N consecutive items and the end of the last."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def write_records(path: files.PathLike, records: Iterable[Record]) -> None:
    """Writes one record per line, in the format of `Record.to_json`."""
    with files.atomic_write(path) as file:
        for record in records:
            line = json.dumps(record.to_json(), ensure_ascii=False, allow_nan=False)
            file.write(f"{line}\n".encode())


def read_records(path: files.PathLike) -> list[Record]:
    """Reads a file that `write_records` wrote.

    Raises:
      UserError: the file is missing, a line is not a record, or an id is duplicated; the message
        names the line.
    """
    return list(iterate_records(path, {}))


def iterate_records(path: files.PathLike, lines: dict[str, int] | None = None) -> Iterator[Record]:
    """Yields the records of a file that `write_records` wrote.

    Args:
      path: the file.
      lines: receives the line of every id, to detect duplicates; None: they are allowed.

    Raises:
      UserError: as for `read_records`.
    """
    for number, row, problem in jsonl.read_rows(path):
        try:
            if row is None:
                raise ValueError(problem)
            record = _parse(row)
            if lines is not None and record.id in lines:
                raise ValueError(f"repeats the id {record.id!r} of line {lines[record.id]}")
        except (KeyError, TypeError, ValueError) as error:
            missing = isinstance(error, KeyError)
            reason = f"has no {error.args[0]!r}" if missing else str(error)
            raise UserError(
                f"{path}:{number} {reason}. Expected a record as this program writes it; delete "
                "the file and rerun to rebuild it."
            ) from error
        if lines is not None:
            lines[record.id] = number
        yield record


def check_rejected_fraction(
    rejected: Sequence[Rejected], total: int, max_rejected_fraction: float
) -> None:
    """Raises an error if too many records are rejected.

    Args:
      rejected: rejected records.
      total: number of records, including the rejected ones.
      max_rejected_fraction: maximum fraction of rejected records, in [0, 1].

    Raises:
      UserError: the fraction is higher; the message lists the first rejected records.
    """
    if len(rejected) > max_rejected_fraction * total:
        first = "".join(f"\n  {printable(bad.id)}: {printable(bad.reason)}" for bad in rejected[:5])
        more = f"\n  … and {len(rejected) - 5} more" if len(rejected) > 5 else ""
        raise UserError(
            f"{len(rejected)} of {total} records cannot be used, more than max_rejected_fraction="
            f"{max_rejected_fraction:g} allows:{first}{more}\n  Fix them, or raise "
            "--config.data.max_rejected_fraction to continue without them."
        )


def _parse(row: dict[str, Any]) -> Record:
    texts = [row["id"], row["question"], row["answer"], *row["steps"]]
    if isinstance(row["steps"], str) or not all(isinstance(text, str) for text in texts):
        raise TypeError(
            "is not a record: 'id', 'question', 'answer' and each of 'steps' must be strings"
        )
    return Record.from_json(row)
