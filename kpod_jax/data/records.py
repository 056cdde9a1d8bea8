"""Records, and ragged arrays over them: what every other room is given.

A record is a question, a teacher's rationale cut into steps, and the answer.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


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
        offsets = np.zeros(len(arrays) + 1, np.int64)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        values = np.concatenate(arrays) if arrays else np.zeros(0, dtype)
        return cls(values, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64."""
        return np.diff(self.offsets)
