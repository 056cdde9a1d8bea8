"""Generations, their answers and the accuracy, with its 95 % interval.

Of several samples of a question, the answer that most of them give counts (self-consistency).
"""

import collections
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import Mesh

from kpod_jax.data import answers, tokens
from kpod_jax.data.records import Record
from kpod_jax.evaluation import error_analysis, intervals
from kpod_jax.evaluation.generation import Generator, Sampling
from kpod_jax.models.student import Student


class Evaluator:
    """Generations for the questions of some records; compiled once, used for any parameters.

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
        sampling: Sampling | None = None,
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
          sampling: how, and how many generations of each question, of which the answer that most
            give counts. None: one, greedy.
        """
        self.records = list(records)
        self._student, self._kind, self._samples = (
            student,
            answer_kind,
            (sampling or Sampling()).samples,
        )
        self._questions = tokens.tokenize_questions(
            records, student.tokenizer, prompt=prompt, decoder_only=student.decoder_only
        )
        self._generator = Generator(
            student,
            mesh,
            student.decoder_start(prompt),
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
        )

    def predictions(
        self, params: Any, progress: Callable[[int], None] = lambda generations: None
    ) -> list[dict[str, Any]]:
        """One row a record: id, question, prediction, extracted, gold, correct and error.

        With several samples `extracted` is the most frequent answer, `prediction` the first sample
        that gives it, and "samples" holds prediction, extracted and correct of each. "error" is of
        `reasoning_errors.CLASSES`, or None where the answer is correct.
        """
        generated = self._generator(
            params, self._questions, samples=self._samples, progress=progress
        )
        tokenizer = self._student.tokenizer
        return [
            self._row(record, tokenizer.batch_decode(ids, skip_special_tokens=True))
            for record, ids in zip(self.records, generated, strict=True)
        ]

    def _row(self, record: Record, texts: Sequence[str]) -> dict[str, Any]:
        texts = [text.strip() for text in texts]
        found = [answers.extract_answer(text, self._kind) for text in texts]
        # The first of those that are equally frequent; no answer is none.
        given = collections.Counter(answer for answer in found if answer is not None)
        extracted = max(given, key=lambda answer: given[answer], default=None)
        prediction = texts[found.index(extracted)]
        correct = answers.answers_equal(extracted, record.answer, self._kind)
        error = None
        if not correct:
            error = error_analysis.classify(prediction, extracted, record.rationale, self._kind)
        row = {
            "id": record.id,
            "question": record.question,
            "prediction": prediction,
            "extracted": extracted,
            "gold": record.answer,
            "correct": correct,
            "error": error,
        }
        if len(texts) > 1:
            row["samples"] = [
                {
                    "prediction": text,
                    "extracted": answer,
                    "correct": answers.answers_equal(answer, record.answer, self._kind),
                }
                for text, answer in zip(texts, found, strict=True)
            ]
        return row

    def accuracy(self, params: Any) -> float:
        """Share of right answers, in [0, 1]."""
        return summary(self.predictions(params))["accuracy"]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy, counts and Wilson's 95 % interval of some predictions.

    "errors" counts the classes of the wrong ones. Where each question has n samples:

    - "samples": n.
    - "agreement": share of a question's samples that give its most frequent answer, on average;
      those without an answer agree with none.
    - "oracle": share of the questions that any sample answers correctly (pass@n), which says what
      a perfect choice among the samples would reach.
    """
    correct = sum(row["correct"] for row in rows)
    result: dict[str, Any] = {
        "accuracy": correct / max(1, len(rows)),
        "correct": correct,
        "total": len(rows),
        "interval": list(intervals.wilson_interval(correct, len(rows))),
    }
    counts = collections.Counter(row["error"] for row in rows if row.get("error"))
    result["errors"] = {name: counts[name] for name in error_analysis.CLASSES if counts[name]}
    sampled = [row["samples"] for row in rows if "samples" in row]
    if sampled:
        result["samples"] = len(sampled[0])
        result["agreement"] = statistics.fmean(map(_agreement, rows))
        result["oracle"] = statistics.fmean(
            any(sample["correct"] for sample in samples) for samples in sampled
        )
    return result


def _agreement(row: dict[str, Any]) -> float:
    given = [sample["extracted"] for sample in row["samples"]]
    return given.count(row["extracted"]) / len(given) if row["extracted"] is not None else 0.0
