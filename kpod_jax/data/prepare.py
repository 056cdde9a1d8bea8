"""Prepares a data set for Algorithm 1: records, and the train split's tokens."""

import functools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from kpod_jax.config.defaults import Config
from kpod_jax.data import characters, overlap, sources, token_store
from kpod_jax.data import records as records_io
from kpod_jax.data.characters import Characters, Counts
from kpod_jax.data.published import SPLITS
from kpod_jax.data.record_store import RecordStore
from kpod_jax.data.records import Record, Rejected
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

TOKENS = "records/train_tokens"  # Path for `token_store`, without suffix.
OUTPUTS = (
    *(f"records/{split}.jsonl" for split in SPLITS),
    "records/rejected.jsonl",
    f"{TOKENS}.npy",
    f"{TOKENS}.json",
)


class Tokenizes(Protocol):
    """Interface of a student that tokenizes records.

    Attributes:
      tokenizer: a transformers tokenizer.
    """

    @property
    def tokenizer(self) -> Any: ...

    def tokenize(self, records: Sequence[Record]) -> tuple[TokenizedSet, list[Rejected]]:
        """Returns the records as tokens, and the records that are too long."""
        ...


class Data:
    """Records of all splits, and the tokens of the train split.

    Attributes:
      rejected: {"id", "split", "reason"} of each rejected record.
      notes: notes for the user about the data.
    """

    def __init__(
        self,
        train: TokenizedSet,
        validation: Sequence[Record] = (),
        test: Sequence[Record] = (),
        rejected: Sequence[Mapping[str, str]] = (),
        notes: Sequence[str] = (),
    ) -> None:
        """Initializes the data.

        Args:
          train: tokens and records of the train split.
          validation: records of the validation split.
          test: records of the test split.
          rejected: {"id", "split", "reason"} of each rejected record.
          notes: notes for the user about the data.
        """
        self._splits = {"train": train.records, "validation": validation, "test": test}
        self._train = train
        self.rejected, self.notes = list(rejected), list(notes)

    @property
    def train(self) -> TokenizedSet:
        """Tokenized training examples."""
        return self._train

    def records(self, split: str) -> Sequence[Record]:
        """Returns the records of the "train", "validation" or "test" split."""
        return self._splits[split]

    def __str__(self) -> str:
        """Returns a short summary of the record counts."""
        parts = [f"{len(self.records(split))} {split}" for split in SPLITS]
        if not any("overlap" in note for note in self.notes):
            parts.append("no question in two splits")
        return ", ".join([*parts, f"{len(self.rejected)} rejected"])

    def save(self, root: pathlib.Path) -> None:
        """Writes `OUTPUTS` to a work directory."""
        token_store.save(root / TOKENS, self.train)
        for split in SPLITS:
            records_io.write_records(root / f"records/{split}.jsonl", self.records(split))
        files.write_jsonl(root / "records/rejected.jsonl", self.rejected)

    @classmethod
    def load(cls, root: pathlib.Path) -> "Data":
        """Returns the data that `save` wrote; files are read on first use."""
        return _Stored(root)


class _Stored(Data):
    def __init__(self, root: pathlib.Path) -> None:
        self._root = root
        self.rejected, self.notes = [], []

    @functools.cached_property
    def train(self) -> TokenizedSet:  # pyright: ignore[reportIncompatibleMethodOverride]
        return token_store.load(self._root / TOKENS, self.records("train"))

    @functools.cache  # noqa: B019 - one instance per run.
    def records(self, split: str) -> Sequence[Record]:
        return RecordStore.open(self._root / f"records/{split}.jsonl")


def prepare_data(source: Config | Mapping[str, Sequence[Record]], student: Tokenizes) -> Data:
    """Loads and checks a data set, and tokenizes its training examples.

    Args:
      source: `data` of a configuration; or custom records by split: "train" and optionally
        "validation" and "test".
      student: tokenizes the training examples within its length limits.

    Raises:
      UserError: the data cannot be read, too many records are rejected, or a split is empty.
    """
    rewriter = _Rewriter(student.tokenizer)
    if isinstance(source, Mapping):
        train, too_long = student.tokenize(RecordStore(rewriter(source["train"])))
        rejected = _rows(too_long, "train")
        _check_not_empty("train", "your data", train.records, too_long)
        usable = {s: RecordStore(rewriter(r)) for s, r in source.items() if s != "train"}
        notes = [*rewriter.notes(), *_overlaps({"train": train.records, **usable})]
        return Data(train, usable.get("validation", ()), usable.get("test", ()), rejected, notes)
    notes = sources.notes(source)
    rejected, usable = [], {}
    train, too_long = None, []
    for split in SPLITS:
        records, bad = sources.stream_records(source, split, notes=notes)
        records = rewriter(records)
        if split == "train":
            strange: list[Rejected] = []
            if source.reject_unknown_characters:
                records = rewriter.known(records, strange)
            train, too_long = student.tokenize(RecordStore(records))
            records, bad = train.records, [*bad, *strange, *too_long]
        else:
            records = RecordStore(records)
        _check_not_empty(split, source.name, records, bad)
        rejected += _rows(bad, split)
        usable[split] = records
    assert train is not None
    # `stream_records` has already checked the data set's broken records.
    records_io.check_rejected_fraction(
        too_long, len(train) + len(too_long), source.max_rejected_fraction
    )
    notes += [*rewriter.notes(), *_overlaps(usable)]
    return Data(train, usable["validation"], usable["test"], rejected, notes)


class _Rewriter:
    """Rewrites records in a tokenizer's characters, and counts what it does."""

    def __init__(self, tokenizer: Any) -> None:
        self._characters = Characters(tokenizer)
        self._counts = {name: Counts() for name in ("rationales", "questions")}

    def __call__(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yields the rewritten records."""
        for record in records:
            rewritten = self._characters.rewrite_record(record)
            for name, before, after in (
                ("rationales", record.rationale, rewritten.rationale),
                ("questions", record.question, rewritten.question),
            ):
                if before:
                    self._characters.count(self._counts[name], before, after)
            yield rewritten

    def known(self, records: Iterable[Record], strange: list[Rejected]) -> Iterator[Record]:
        """Yields the records whose characters are all known; the others go to `strange`."""
        for record in records:
            text = f"{record.question} {record.rationale} {record.answer}"
            if unknown := sorted(self._characters.unknown(text)):
                reason = f"the tokenizer does not know its characters {''.join(unknown)!r:.80}"
                strange.append(Rejected(record.id, reason))
            else:
                yield record

    def notes(self) -> list[str]:
        """Returns a note about unknown characters, or none."""
        note = characters.describe(self._counts)
        return [note] if note else []


def _rows(rejected: Sequence[Rejected], split: str) -> list[dict[str, str]]:
    return [{"id": bad.id, "split": split, "reason": bad.reason} for bad in rejected]


def _check_not_empty(
    split: str, name: str, records: Sequence[Any], bad: Sequence[Rejected]
) -> None:
    if not records:
        raise UserError(
            f"The {split} split of {name} has no usable record: "
            + "; ".join(f"{r.id}: {r.reason}" for r in bad[:3])
            + ". Fix the data, or raise student.max_question_tokens and max_target_tokens."
        )


def _overlaps(splits: Mapping[str, Sequence[Record]]) -> list[str]:
    shared = overlap.describe(splits)
    lines = "".join(f"\n  {line}" for line in shared.splitlines())
    return [f"the splits overlap, so accuracies may be too high:{lines}"] if lines else []
