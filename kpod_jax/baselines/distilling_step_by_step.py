"""Distilling Step-by-Step (Hsieh et al., ACL 2023): answer and rationale as two tasks.

The student learns to answer directly if the prompt begins with [label], and to explain if it begins
with [rationale]: L = L_label + λ L_rationale. At evaluation it is prompted with [label] and writes
no rationale.
"""

from collections.abc import Mapping, Sequence

from kpod_jax.baselines.answer_only import AnswerOnly, without_steps
from kpod_jax.baselines.protocol import Example, Method
from kpod_jax.data.records import Record

LABEL, RATIONALE = "[label] ", "[rationale] "


class DistillingStepByStep(Method):
    """Two tasks: one label example per question, one rationale example per record."""

    keys = ("answer_prompt", "rationale_weight")

    @property
    def prompt(self) -> str:
        """The prompt of the label task."""
        return LABEL + self.setting.options["answer_prompt"]

    @property
    def loss_fractions(self) -> Mapping[str, float]:
        """Loss fractions of label and rationale, 1 : λ."""
        weight = self.setting.options["rationale_weight"]
        return {"label": 1 / (1 + weight), "rationale": weight / (1 + weight)}

    def examples(self, records: Sequence[Record]) -> list[Example]:
        """Returns the label examples, then the rationale examples."""
        labels = [example.record for example in AnswerOnly(self.setting).examples(records)]
        return [
            *(Example(without_steps(r, "#label"), self.prompt, task="label") for r in labels),
            *(
                Example(r, RATIONALE + self.setting.prompt, answer_sentence=False, task="rationale")
                for r in records
            ),
        ]
