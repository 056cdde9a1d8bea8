"""From a data set to what Algorithm 1 works on: records, and the train split's tokens."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kpod_jax.config.defaults import Config
from kpod_jax.data import overlap, sources, token_store
from kpod_jax.data import records as records_io
from kpod_jax.data.published import SPLITS
from kpod_jax.data.records import Record, Rejected
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

TOKENS = "records/train_tokens"  # Of `token_store`, without a suffix.
OUTPUTS = (
    *(f"records/{split}.jsonl" for split in SPLITS),
    "records/rejected.jsonl",
    f"{TOKENS}.npy",
    f"{TOKENS}.json",
)


class Tokenizes(Protocol):
    """What is asked of a student here."""

    def tokenize(self, records: Sequence[Record]) -> tuple[TokenizedSet, list[Rejected]]:
        """Records as tokens, and those that do not fit."""
        ...


class Data:
    """Records of all splits; the train split's as tokens, too.

    Attributes:
      rejected: {"id", "split", "reason"} of each record that cannot be used.
      notes: what a user should know of the data.
    """

    def __init__(
        self,
        train: TokenizedSet,
        validation: Sequence[Record] = (),
        test: Sequence[Record] = (),
        rejected: Sequence[Mapping[str, str]] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """Takes the tokens of the train split, and the records of the others."""
        self._splits = {"train": train.records, "validation": validation, "test": test}
        self._train = train
        self.rejected, self.notes = list(rejected), list(notes)

    @property
    def train(self) -> TokenizedSet:
        """The training examples as tokens."""
        return self._train

    def records(self, split: str) -> Sequence[Record]:
        """Of "train", "validation" or "test"."""
        return self._splits[split]

    def __str__(self) -> str:
        """The numbers of records, in a few words."""
        found = [f"{len(self.records(split))} {split}" for split in SPLITS]
        if not any("overlap" in note for note in self.notes):
            found.append("no question in two splits")
        return ", ".join([*found, f"{len(self.rejected)} rejected"])

    def save(self, root: pathlib.Path) -> None:
        """Writes `OUTPUTS` under a work directory."""
        token_store.save(root / TOKENS, self.train)
        for split in SPLITS:
            records_io.write_records(root / f"records/{split}.jsonl", self.records(split))
        files.write_jsonl(root / "records/rejected.jsonl", self.rejected)

    @classmethod
    def load(cls, root: pathlib.Path) -> "Data":
        """What `save` wrote; each file is read when it is first asked for."""
        return _Stored(root)


class _Stored(Data):
    def __init__(self, root: pathlib.Path) -> None:
        self._root = root
        self.rejected, self.notes = [], []

    @functools.cached_property
    def train(self) -> TokenizedSet:  # pyright: ignore[reportIncompatibleMethodOverride]
        return token_store.load(self._root / TOKENS, self.records("train"))

    @functools.cache  # noqa: B019 - a run has one.
    def records(self, split: str) -> Sequence[Record]:
        return records_io.read_records(self._root / f"records/{split}.jsonl")


def prepare_data(source: Config | Mapping[str, Sequence[Record]], student: Tokenizes) -> Data:
    """Loads and checks a data set, and tokenises its training examples.

    Args:
      source: `data` of a configuration; or records of your own, by split: "train", and perhaps
        "validation" and "test".
      student: whose tokens and limits the training examples have.

    Raises:
      UserError: data that cannot be read, too many bad records, or a split without any.
    """
    if isinstance(source, Mapping):
        train, too_long = student.tokenize(source["train"])
        rejected = _rows(too_long, "train")
        _check_some("train", "your data", train.records, too_long)
        validation, test = source.get("validation", ()), source.get("test", ())
        notes = _overlaps({**source, "train": train.records})
        return Data(train, validation, test, rejected, notes)
    notes = [note] if (note := sources.note(source.name, source.splits)) else []
    rejected, usable = [], {}
    train, too_long = None, []
    for split in SPLITS:
        found, bad = sources.load_records(source, split)
        if split == "train":
            train, too_long = student.tokenize(found)
            found, bad = train.records, [*bad, *too_long]
        _check_some(split, source.name, found, bad)
        rejected += _rows(bad, split)
        usable[split] = found
    assert train is not None
    # `load_records` has judged the data set's own errors; these are the student's limits.
    records_io.check_rejected_fraction(
        too_long, len(train) + len(too_long), source.max_rejected_fraction
    )
    notes += _overlaps(usable)
    return Data(train, usable["validation"], usable["test"], rejected, notes)


def _rows(rejected: Sequence[Rejected], split: str) -> list[dict[str, str]]:
    return [{"id": bad.id, "split": split, "reason": bad.reason} for bad in rejected]


def _check_some(split: str, name: str, found: Sequence[Any], bad: Sequence[Rejected]) -> None:
    if not found:
        raise UserError(
            f"The {split} split of {name} has no usable record: "
            + "; ".join(f"{r.id}: {r.reason}" for r in bad[:3])
            + ". Mend the data, or raise student.max_question_tokens and max_target_tokens."
        )


def _overlaps(splits: Mapping[str, Sequence[Record]]) -> list[str]:
    shared = overlap.describe(splits)
    return [f"the splits overlap, so that accuracies may be too high:\n{shared}"] if shared else []
