"""SCOTT (Wang et al., ACL 2023): trains the student's answers to follow from its rationales.

In addition to the teacher's rationales, the student reads counterfactual ones that support another
answer. From these it learns only the answer: the rationale and "Therefore, the answer is" are
context. A prefix distinguishes the two: L = (1 - α) L_factual + α L_counterfactual. At evaluation,
the student is prompted with the factual prefix.

The paper's teacher decodes contrastively, which requires its logits. A black-box teacher provides
none, so its rationales are used as they are.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from kpod_jax.baselines.protocol import Example, Method
from kpod_jax.data import answers, arithmetic, jsonl
from kpod_jax.data.overlap import normalize_question
from kpod_jax.data.records import Record
from kpod_jax.data.steps import split_steps
from kpod_jax.utils.errors import UserError

FACTUAL, COUNTERFACTUAL = "[factual] ", "[counterfactual] "
_COLUMNS = ("question", "rationale", "answer")


class Scott(Method):
    """The records, and counterfactual records whose rationale is context."""

    keys = ("counterfactuals", "counterfactual_weight")
    file_keys = ("counterfactuals",)

    @classmethod
    def config_errors(cls, config: Any) -> list[str]:
        """Checks that there is a source of counterfactual rationales."""
        if config.data.name == "arithmetic" or config.baseline.counterfactuals:
            return []
        return [
            f"baseline.counterfactuals='': expected a JSONL file with a teacher's counterfactual "
            f"rationales for {config.data.name}, with columns {', '.join(_COLUMNS)} "
            "(docs/baselines.md)"
        ]

    @property
    def notes(self) -> Sequence[str]:
        """A note on the missing contrastive decoding."""
        return (
            "SCOTT's contrastive decoding needs the teacher's logits, which a black-box teacher "
            "does not provide: its rationales are used as they are, and counterfactual training "
            "is as published.",
        )

    @property
    def prompt(self) -> str:
        """The prompt with the factual prefix."""
        return FACTUAL + self.setting.prompt

    @property
    def loss_fractions(self) -> Mapping[str, float]:
        """Loss fractions, 1 - α and α."""
        weight = self.setting.options["counterfactual_weight"]
        return {"factual": 1 - weight, "counterfactual": weight}

    def examples(self, records: Sequence[Record]) -> list[Example]:
        """Returns the factual examples, then the available counterfactual ones."""
        path = self.setting.options["counterfactuals"]
        if path:
            counterfactuals = read_counterfactuals(
                path, records, self.setting.answer_kind, self.setting.step_separator
            )
        else:
            generated = (arithmetic.counterfactual(record) for record in records)
            counterfactuals = [record for record in generated if record is not None]
        return [
            *(Example(record, self.prompt, task="factual") for record in records),
            *(
                Example(
                    dataclasses.replace(record, id=f"{record.id}-{number}"),
                    COUNTERFACTUAL + self.setting.prompt,
                    task="counterfactual",
                    rationale_given=True,
                )
                for number, record in enumerate(counterfactuals)
            ),
        ]


def read_counterfactuals(
    path: str, records: Sequence[Record], kind: str, separator: str = ""
) -> list[Record]:
    """Reads a teacher's rationales for answers other than the gold answers.

    Args:
      path: a JSONL file with columns question, rationale and answer, where the answer is the one
        that the rationale supports. Rows are skipped if their question is not in `records` or
        their answer is the gold answer.
      records: the training split.
      kind: kind of answer, from `answers.KINDS`.
      separator: text that ends a step.

    Returns:
      One record per usable row, in file order.

    Raises:
      UserError: if the file cannot be read, a line is malformed, or no row is usable.
    """
    gold = {normalize_question(record.question): record for record in reversed(records)}
    counterfactuals = []
    for number, row, problem in jsonl.read_rows(path):
        try:
            if row is None:
                raise ValueError(problem)
            question, rationale, answer = (jsonl.text_column(row, name) for name in _COLUMNS)
            if answers.extract_answer(answer, kind) is None:
                raise ValueError(f"has the answer {answer!r:.80}, which is not a {kind}")
        except ValueError as error:
            raise UserError(
                f"{path}:{number} {error}. Expected one counterfactual per line: "
                '{"question": …, "rationale": …, "answer": …}.'
            ) from error
        record = gold.get(normalize_question(question))
        if record is None or answers.answers_equal(answer, record.answer, kind, record.question):
            continue
        counterfactuals.append(
            dataclasses.replace(
                record,
                id=f"{record.id}#counterfactual",
                steps=split_steps(rationale, separator),
                answer=answer,
                keypoints=None,
                hardness=None,
            )
        )
    if not counterfactuals:
        raise UserError(
            f"{path} has no rationale for a non-gold answer to any question in the {len(records)} "
            "training records. Expected questions of the training split, each with a wrong answer "
            "and a rationale for it."
        )
    return counterfactuals
