"""Fine-tuning on answers alone: the student never sees a rationale."""

import dataclasses
from collections.abc import Sequence

from kpod_jax.baselines.protocol import Example, Method
from kpod_jax.data.records import Record


class AnswerOnly(Method):
    """Question -> answer sentence."""

    keys = ("answer_prompt",)

    @property
    def prompt(self) -> str:
        """The answer prompt, which asks for no steps."""
        return self.setting.options["answer_prompt"]

    def examples(self, records: Sequence[Record]) -> list[Example]:
        """Returns one example per question; it does not depend on the rationales."""
        return [
            Example(without_steps(record), self.prompt) for record in first_per_question(records)
        ]


def first_per_question(records: Sequence[Record]) -> list[Record]:
    """Returns the first record of each question."""
    first = {(record.question, record.answer): record for record in reversed(records)}
    return list(reversed(first.values()))


def without_steps(record: Record, mark: str = "") -> Record:
    """Returns the record without its rationale, with `mark` appended to its id."""
    return dataclasses.replace(record, id=record.id + mark, steps=(), keypoints=None, hardness=None)
