"""Predictions, their answers, and the accuracy with its 95% interval.

With several samples per question, the majority answer counts (self-consistency): samples vote by
the value of their answers, so that 1/2 and 0.5 are one.
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
    """Generates and scores answers to the questions of records; compiles once for all parameters.

    Attributes:
      records: records with the questions.
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
        """Tokenizes the questions.

        Args:
          student: model and tokenizer.
          records: records with gold answers.
          mesh: the mesh of the parameters.
          prompt: prompt template.
          answer_kind: kind of answer, one of `answers.KINDS` or package.module:function.
          batch_size: number of questions decoded at a time.
          max_new_tokens: maximum length of a generation.
          sampling: sampling settings, including the number of samples per question, from which the
            majority answer is taken; None for a single greedy generation.
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
        """Returns a row per record: id, question, prediction, extracted, gold, correct and error.

        "error" is a key of `error_analysis.CLASSES`, or None if the answer is correct. With several
        samples, "extracted" is the most frequent answer, "prediction" the first sample that gives
        it, and "samples" lists prediction, extracted and correct of each sample; equal answers are
        written as the first of them.
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
        kind, question = self._kind, record.question
        extractions = answers.by_value(
            [answers.extract_answer(text, kind, question) for text in texts], kind
        )
        # Samples without an answer do not count. Ties go to the answer that occurs first.
        votes = collections.Counter(answer for answer in extractions if answer is not None)
        extracted = max(votes, key=lambda answer: votes[answer], default=None)
        prediction = texts[extractions.index(extracted)]
        correct = answers.answers_equal(prediction, record.answer, kind, question)
        error = None
        if not correct:
            error = error_analysis.classify(prediction, extracted, record.rationale, kind)
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
                    "correct": answers.answers_equal(text, record.answer, kind, question),
                }
                for text, answer in zip(texts, extractions, strict=True)
            ]
        return row

    def accuracy(self, params: Any) -> float:
        """Returns the fraction of correct answers, in [0, 1]."""
        return summary(self.predictions(params))["accuracy"]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Computes the accuracy, the counts and Wilson's 95% interval of predictions.

    "errors" counts the wrong predictions by class. With n samples per question, the result also has

    - "samples": n.
    - "agreement": mean fraction of a question's samples that give its most frequent answer; a
      sample without an answer never agrees.
    - "oracle": fraction of questions that at least one sample answers correctly (pass@n), which a
      perfect choice among the samples would reach.
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
    votes = [sample["extracted"] for sample in row["samples"]]
    return votes.count(row["extracted"]) / len(votes) if row["extracted"] is not None else 0.0
