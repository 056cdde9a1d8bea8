"""Loads the questions for the teacher: the train split's, with or without rationales."""

import dataclasses
import re

from kpod_jax.config.defaults import Config
from kpod_jax.data import sources


@dataclasses.dataclass(frozen=True)
class Question:
    """A record without its rationale.

    Attributes:
      id: id of the record.
      question: x in the paper.
      answer: the data set's answer.
    """

    id: str
    question: str
    answer: str

    @property
    def row_id(self) -> str | int:
        """Its id in a file for `data.rationales`; for GSM8K, the line of train.jsonl, from 0."""
        line = re.fullmatch(r"gsm8k-train-(\d+)", self.id)
        return int(line[1]) if line else self.id


def answer_kind(data: Config) -> str:
    """Returns the kind of the answers, one of `answers.KINDS`."""
    return sources.answer_kind(data.name, data.answer_kind)


def load_questions(data: Config) -> list[Question]:
    """Loads the questions in the train split of the configured data set.

    Args:
      data: `data` of the configuration; `train_examples` limits the number of questions.

    Raises:
      UserError: the data set cannot be read, is empty, or has too many broken records.
    """
    records, _ = sources.load_records(
        data, need_rationales=False, rationales="", rationales_per_question=1
    )
    return [Question(record.id, record.question, record.answer) for record in records]
