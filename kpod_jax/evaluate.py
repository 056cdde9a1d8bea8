"""Generations, their answers and the accuracy, with its 95 % interval."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from kpod_jax import answers, sharding
from kpod_jax.data import batches, tokens
from kpod_jax.data.records import Record
from kpod_jax.generate import Generator
from kpod_jax.models.student import Student


class Evaluator:
    """Greedy generations for the questions of some records; compiled once, used for any parameters.

    Attributes:
      records: whose questions are asked.
    """

    def __init__(
        self,
        student: Student,
        records: Sequence[Record],
        mesh: Mesh,
        *,
        prompt: str,
        answer_kind: str,
        batch_size: int,
        max_new_tokens: int,
    ) -> None:
        """Tokenises the questions.

        Args:
          student: model and tokenizer.
          records: with gold answers.
          mesh: that the parameters lie on.
          prompt: of the configuration.
          answer_kind: of `answers.KINDS`.
          batch_size: questions at a time.
          max_new_tokens: bound of a generation.
        """
        self.records = list(records)
        self._student, self._mesh, self._kind = student, mesh, answer_kind
        self._questions = tokens.tokenize_questions(records, student.tokenizer, prompt=prompt)
        self._batch_size = batch_size
        self._generator = Generator(student, mesh, max_new_tokens)

    def predictions(
        self, params: Any, progress: Callable[[int], None] = lambda questions: None
    ) -> list[dict[str, Any]]:
        """One row a record: id, question, prediction, extracted, gold and correct."""
        texts = [""] * len(self.records)
        source = batches.question_batches(
            self._questions, self._batch_size, pad_id=self._student.tokenizer.pad_token_id
        )
        for batch in source:
            index = batch.pop("index")
            placed = sharding.place_batch(batch, self._mesh)
            generated = np.asarray(
                self._generator(params, placed["input_ids"], placed["input_mask"])
            )
            decoded = self._student.tokenizer.batch_decode(generated, skip_special_tokens=True)
            for i, text in zip(index, decoded, strict=True):
                if i >= 0:
                    texts[i] = text.strip()
            progress(int((index >= 0).sum()))
        rows = []
        for record, text in zip(self.records, texts, strict=True):
            extracted = answers.extract_answer(text, self._kind)
            rows.append(
                {
                    "id": record.id,
                    "question": record.question,
                    "prediction": text,
                    "extracted": extracted,
                    "gold": record.answer,
                    "correct": answers.answers_equal(extracted, record.answer, self._kind),
                }
            )
        return rows

    def accuracy(self, params: Any) -> float:
        """Share of right answers, in [0, 1]."""
        return summary(self.predictions(params))["accuracy"]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy, counts and Wilson's 95 % interval of some predictions."""
    correct = sum(row["correct"] for row in rows)
    return {
        "accuracy": correct / max(1, len(rows)),
        "correct": correct,
        "total": len(rows),
        "interval": list(answers.wilson_interval(correct, len(rows))),
    }
