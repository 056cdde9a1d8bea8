"""Distilling Step-by-Step (Hsieh et al., ACL 2023): answer and rationale as two tasks.

The student learns to answer at once where the prompt begins with [label], and to explain where it
begins with [rationale]: L = L_label + λ L_rationale. It is asked for labels, and writes no
rationale then.
"""

from collections.abc import Mapping, Sequence

from kpod_jax.baselines.answer_only import AnswerOnly, without_steps
from kpod_jax.baselines.protocol import Example, Method
from kpod_jax.data.records import Record

LABEL, RATIONALE = "[label] ", "[rationale] "


class DistillingStepByStep(Method):
    """Two examples a record, one a task."""

    keys = ("answer_prompt", "rationale_weight")

    @property
    def prompt(self) -> str:
        """That of the label task."""
        return LABEL + self.setting.options["answer_prompt"]

    @property
    def shares(self) -> Mapping[str, float]:
        """1 : λ."""
        weight = self.setting.options["rationale_weight"]
        return {"label": 1 / (1 + weight), "rationale": weight / (1 + weight)}

    def examples(self, records: Sequence[Record]) -> list[Example]:
        """Labels of questions, and rationales of records."""
        labels = [example.record for example in AnswerOnly(self.setting).examples(records)]
        return [
            *(Example(without_steps(r, "#label"), self.prompt, task="label") for r in labels),
            *(
                Example(r, RATIONALE + self.setting.prompt, answer_sentence=False, task="rationale")
                for r in records
            ),
        ]
