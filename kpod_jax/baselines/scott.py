"""SCOTT (Wang et al., ACL 2023): the student's answer is to follow from its rationale.

Besides the teacher's rationales the student reads counterfactual ones, which support another
answer. Of these it learns the answer alone: the rationale and "Therefore, the answer is" are
context. A prefix tells the two apart: L = (1 - α) L_factual + α L_counterfactual. The trained
student is asked with the factual prefix.

The paper's teacher decodes contrastively, which takes its logits. A black box gives none, so its
rationales are used as they are.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from kpod_jax.baselines.protocol import Example, Method
from kpod_jax.data import answers, arithmetic, jsonl
from kpod_jax.data.overlap import normalised
from kpod_jax.data.records import Record
from kpod_jax.data.steps import split_steps
from kpod_jax.utils.errors import UserError

FACTUAL, COUNTERFACTUAL = "[factual] ", "[counterfactual] "
_COLUMNS = ("question", "rationale", "answer")


class Scott(Method):
    """Records, and counterfactual ones whose rationale is context."""

    keys = ("counterfactuals", "counterfactual_weight")
    file_keys = ("counterfactuals",)

    @classmethod
    def config_errors(cls, config: Any) -> list[str]:
        """Counterfactual rationales must come from somewhere."""
        if config.data.name == "arithmetic" or config.baseline.counterfactuals:
            return []
        return [
            f"baseline.counterfactuals='': expected a teacher's counterfactual rationales for "
            f"{config.data.name}, a JSONL file of {', '.join(_COLUMNS)} (docs/baselines.md)"
        ]

    @property
    def notes(self) -> Sequence[str]:
        """What a black box does not give."""
        return (
            "SCOTT's contrastive decoding needs the teacher's logits, which a black-box teacher "
            "does not give: its rationales are used as they are, and counterfactual training is as "
            "published.",
        )

    @property
    def prompt(self) -> str:
        """With the factual prefix."""
        return FACTUAL + self.setting.prompt

    @property
    def shares(self) -> Mapping[str, float]:
        """1 - α and α."""
        weight = self.setting.options["counterfactual_weight"]
        return {"factual": 1 - weight, "counterfactual": weight}

    def examples(self, records: Sequence[Record]) -> list[Example]:
        """Factual ones, then the counterfactual ones that there are."""
        path = self.setting.options["counterfactuals"]
        if path:
            others = read_counterfactuals(
                path, records, self.setting.answer_kind, self.setting.step_separator
            )
        else:
            own = (arithmetic.counterfactual(record) for record in records)
            others = [other for other in own if other is not None]
        return [
            *(Example(record, self.prompt, task="factual") for record in records),
            *(
                Example(
                    dataclasses.replace(other, id=f"{other.id}-{number}"),
                    COUNTERFACTUAL + self.setting.prompt,
                    task="counterfactual",
                    rationale_given=True,
                )
                for number, other in enumerate(others)
            ),
        ]


def read_counterfactuals(
    path: str, records: Sequence[Record], kind: str, separator: str = ""
) -> list[Record]:
    """A teacher's rationales for other answers than the gold ones.

    Args:
      path: a JSONL file of question, rationale and answer, the one that the rationale supports.
        Rows of other questions than the records' are passed over, and so are those whose answer
        is the gold one.
      records: of the training split.
      kind: of the answers.
      separator: that ends a step.

    Returns:
      A record for each usable row, in the file's order.

    Raises:
      UserError: the file cannot be read, a line is no such row, or no row is usable.
    """
    gold = {normalised(record.question): record for record in reversed(records)}
    found = []
    for number, row, problem in jsonl.read_rows(path):
        try:
            if row is None:
                raise ValueError(problem)
            question, rationale, answer = (jsonl.text_column(row, name) for name in _COLUMNS)
            if answers.extract_answer(answer, kind) is None:
                raise ValueError(f"has the answer {answer!r:.80}, which is no {kind}")
        except ValueError as error:
            raise UserError(
                f"{path}:{number} {error}. Expected a counterfactual a line: "
                '{"question": …, "rationale": …, "answer": …}.'
            ) from error
        record = gold.get(normalised(question))
        if record is None or answers.answers_equal(answer, record.answer, kind):
            continue
        found.append(
            dataclasses.replace(
                record,
                id=f"{record.id}#counterfactual",
                steps=split_steps(rationale, separator),
                answer=answer,
                keypoints=None,
                hardness=None,
            )
        )
    if not found:
        raise UserError(
            f"{path} has no rationale that supports another answer than the gold one for any of "
            f"the {len(records)} training records. Expected the questions of the training split, "
            "each with a wrong answer and a rationale for it."
        )
    return found
