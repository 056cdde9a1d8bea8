"""Records, and ragged arrays over them: what every other room is given.

A record is a question, a teacher's rationale cut into steps, and the answer.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kpod_jax.data import jsonl
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Record:
    """One example.

    Attributes:
      id: unique within its data set; names the example in every message and file.
      question: x of the paper.
      steps: the rationale r, cut into steps. Each keeps its trailing white space, so that
        `"".join(steps)` is the rationale to the character.
      answer: y, as it is to be generated.
      keypoints: spans of characters (start, end) of the rationale that are known to decide the
        answer; only the built-in task knows them, others have None.
      hardness: known difficulty of each step, larger is harder; only the built-in task.
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
        """Plain values, without the fields that are unknown."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Record":
        """Inverse of `to_json`.

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
      id: the record's, or its file and line where it has none.
      reason: what is wrong with it, for a user to read.
    """

    id: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a data set holds of one split.

    Attributes:
      records: that can be used.
      broken: at fault, such as lines that cannot be read.
      absent: left out without a fault, such as questions that a teacher has no good rationale for.
      elsewhere: ids of the data set's records in other splits, as far as they are known.
      further: other rationales of a record's question, by the record's id, as records.
    """

    records: list[Record] = dataclasses.field(default_factory=list)
    broken: list[Rejected] = dataclasses.field(default_factory=list)
    absent: list[Rejected] = dataclasses.field(default_factory=list)
    elsewhere: set[str] = dataclasses.field(default_factory=set)
    further: dict[str, list[Record]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Ragged:
    """N arrays of different lengths as one flat array: `ragged[i]` is a view of the i-th.

    Attributes:
      values: [sum of lengths, ...], any dtype.
      offsets: [N + 1] int64, from 0 to `len(values)`, never falling.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_list(cls, arrays: Sequence[Any], dtype: Any = None) -> "Ragged":
        """Joins N sequences."""
        arrays = [np.asarray(array, dtype) for array in arrays]
        values = np.concatenate(arrays) if arrays else np.zeros(0, dtype)
        return cls.from_lengths(values, [len(array) for array in arrays])

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: npt.ArrayLike) -> "Ragged":
        """Values that lie one array behind the other, by the arrays' lengths."""
        return cls(values, offsets_of(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        """The slices in order."""
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64."""
        return np.diff(self.offsets)


def as_ragged(arrays: "Ragged | Sequence[npt.ArrayLike] | None") -> "Ragged | None":
    """One array a record, float32; None stays None."""
    if arrays is None or isinstance(arrays, Ragged):
        return arrays
    return Ragged.from_list([np.asarray(array) for array in arrays], np.float32)


def offsets_of(lengths: npt.ArrayLike) -> np.ndarray:
    """[N + 1] int64, where each of N things in a row starts, and the last one's end."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def write_records(path: files.PathLike, records: Iterable[Record]) -> None:
    """Writes one record a line, as `Record.to_json` has it."""
    files.write_jsonl(path, (record.to_json() for record in records))


def read_records(path: files.PathLike) -> list[Record]:
    """Reads what `write_records` wrote.

    Raises:
      UserError: the file is missing, a line is not a record, or an id comes twice; the message
        names the line.
    """
    records: list[Record] = []
    lines: dict[str, int] = {}
    for number, row, problem in jsonl.read_rows(path):
        try:
            if row is None:
                raise ValueError(problem)
            record = _checked(row)
            if record.id in lines:
                raise ValueError(f"has the id {record.id!r} of line {lines[record.id]}")
        except (KeyError, TypeError, ValueError) as error:
            missing = isinstance(error, KeyError)
            what = f"has no {error.args[0]!r}" if missing else str(error)
            raise UserError(
                f"{path}:{number} {what}. Expected a record as this program writes it; delete the "
                "file to have it made again."
            ) from error
        lines[record.id] = number
        records.append(record)
    return records


def check_rejected_fraction(
    rejected: Sequence[Rejected], total: int, max_rejected_fraction: float
) -> None:
    """Stops where too many records are bad.

    Args:
      rejected: the bad ones.
      total: of good and bad records.
      max_rejected_fraction: in [0, 1]; that many are put up with.

    Raises:
      UserError: there are more; the message names the first ones.
    """
    if len(rejected) > max_rejected_fraction * total:
        first = "".join(f"\n  {bad.id}: {bad.reason}" for bad in rejected[:5])
        more = f"\n  … and {len(rejected) - 5} more" if len(rejected) > 5 else ""
        raise UserError(
            f"{len(rejected)} of {total} records cannot be used, more than max_rejected_fraction="
            f"{max_rejected_fraction:g} puts up with:{first}{more}\nMend them, or raise "
            "--config.data.max_rejected_fraction to go on without them."
        )


def _checked(row: dict[str, Any]) -> Record:
    texts = [row["id"], row["question"], row["answer"], *row["steps"]]
    if isinstance(row["steps"], str) or not all(isinstance(text, str) for text in texts):
        raise TypeError("is not a record: 'id', 'question', 'answer' and each of 'steps' are texts")
    return Record.from_json(row)
