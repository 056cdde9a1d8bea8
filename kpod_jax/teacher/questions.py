"""The questions that a teacher is asked: the train split's, whether they have rationales or not."""

import dataclasses
import pathlib
import re

from kpod_jax.configuration import Config
from kpod_jax.data import jsonl, sources
from kpod_jax.data.records import Rejected, check_bad_share
from kpod_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Question:
    """A record without its rationale.

    Attributes:
      id: the record's.
      question: x of the paper.
      answer: the data set's.
    """

    id: str
    question: str
    answer: str

    @property
    def row_id(self) -> str | int:
        """Its id in a file for `data.rationales`: GSM8K's are lines of train.jsonl, from 0."""
        line = re.fullmatch(r"gsm8k-train-(\d+)", self.id)
        return int(line[1]) if line else self.id


def answer_kind(data: Config) -> str:
    """What the answers are: one of `answers.KINDS`."""
    return data.answer_kind or "number"


def load_questions(data: Config) -> list[Question]:
    """Reads the train split of the configured data set.

    Args:
      data: the configuration's block; `train_examples` keeps the first so many.

    Raises:
      UserError: the data set cannot be read, is empty, or has too many broken records.
    """
    if data.name == "jsonl":
        return _own(data)
    records, _ = sources.load_records(
        data.name,
        "train",
        path=data.path,
        cache_dir=data.cache,
        splits=data.splits,
        separator=data.step_separator,
        limit=data.train_examples,
        max_bad_share=data.max_bad_share,
    )
    return [Question(record.id, record.question, record.answer) for record in records]


def _own(data: Config) -> list[Question]:
    """As `sources.load_records` reads a user's files, but for the rationale, which may be missing.

    The ids are the same, so that the records find the rationales that are made for them.
    """
    source = pathlib.Path(data.path).expanduser()
    whole = source.is_file()
    file = source if whole else source / "train.jsonl"
    questions: list[Question] = []
    rejected: list[Rejected] = []
    ids: set[str] = set()
    for number, row, problem in jsonl.read_rows(file):
        id_ = default_id = f"{file.stem}-{number - 1}"
        try:
            if row is None:
                raise ValueError(problem)
            question = jsonl.text_column(row, "question")
            answer = jsonl.text_column(row, "answer")
            id_ = jsonl.text_column(row, "id", required=False) or default_id
            if id_ in ids:
                raise ValueError(f"repeats the id {id_!r}")
            ids.add(id_)
            if not whole or sources._part_of(question) == "train":
                questions.append(Question(id_, question, answer))
        except ValueError as error:
            rejected.append(Rejected(id_, f"{file}:{number} {error}"))
    check_bad_share(rejected, len(questions) + len(rejected), data.max_bad_share)
    if not questions:
        raise UserError(f"{file} has no questions of the train split. Expected at least one.")
    return questions[: data.train_examples or None]
