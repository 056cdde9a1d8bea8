"""What a method is that trains on examples of its own making.

A method maps records to examples: what the student reads, what it writes, and of which task that
is. All else (tokens, batches, the train step, evaluation) is the same for all methods. A method
whose loss is more than cross entropy has an `Objective` besides.
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from kpod_jax.data.batches import Batch
from kpod_jax.data.records import Record
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.training.train_step import Loss, cross_entropy


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a method is made with.

    Attributes:
      options: `baseline` of the configuration, by key.
      data: the data set's name.
      answer_kind: of its answers, of `answers.KINDS`.
      step_separator: that ends a step, for `split_steps`.
      prompt: the template of the configuration, `student.prompt`.
      answer_template: the answer sentence of the configuration.
      seed: of the run; all randomness of a method comes from it.
      token_lengths: from texts to the number of the student's tokens in each, [N] int64.
      max_question_tokens: longer prompts are left out.
      tokenizer: the student's.
    """

    options: Mapping[str, Any]
    data: str
    answer_kind: str
    step_separator: str
    prompt: str
    answer_template: str
    seed: int
    token_lengths: Callable[[Sequence[str]], np.ndarray]
    max_question_tokens: int
    tokenizer: Any = None


@dataclasses.dataclass(frozen=True)
class Example:
    """One thing that the student is trained to write.

    The target is the rationale, if there is one, and the answer sentence, if it is wanted.

    Attributes:
      record: its question, steps (perhaps none) and answer; the id is this example's alone.
      prompt: the template of what is read, with `{question}` in it.
      answer_sentence: whether the target ends with it; without it the target is the rationale.
      task: examples of one task share a share of the loss.
      rationale_given: whether the rationale, and the answer sentence up to the answer, are context:
        the answer and what follows it are learned.
      group: examples of one group are compared by a loss that looks at pairs; "" is none.
    """

    record: Record
    prompt: str
    answer_sentence: bool = True
    task: str = ""
    rationale_given: bool = False
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
      loss: of a batch, see `train_step.Loss`.
      arrays: further arrays for a batch, see `BatchSource`; None: none.
      pairs: whether rows 2 k and 2 k + 1 of a batch are two examples of one group.
      note: what is said of it with the number of examples.
    """

    loss: Loss = cross_entropy
    arrays: Callable[[np.ndarray, int], Batch] | None = None
    pairs: bool = False
    note: str = ""


def row_layout_errors(config: Any) -> list[str]:
    """What is wrong with a configuration for a loss that looks at places of a batch's rows."""
    distill = config.distill
    return [
        f"distill.{key}={value!r}: expected {expected!r} for {config.method}, whose loss looks at "
        "places of a row, which this moves"
        for key, value, expected in (
            ("pack_length", distill.pack_length, 0),
            ("input_steps", distill.input_steps, "decoder"),
        )
        if value != expected
    ]


class Method(abc.ABC):
    """A method, made anew from its setting wherever it is needed.

    Attributes:
      keys: of `baseline`, that it reads: with others a student of it stays the same.
      file_keys: those of them that name files.
    """

    keys: ClassVar[tuple[str, ...]] = ()
    file_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, setting: Setting) -> None:
        """Keeps the setting."""
        self.setting = setting

    @classmethod
    def config_errors(cls, config: Any) -> list[str]:
        """What is wrong with a whole configuration for this method, a line each."""
        del config
        return []

    @property
    def notes(self) -> Sequence[str]:
        """What is said when training starts, such as what a black-box teacher does not give."""
        return ()

    @property
    def prompt(self) -> str:
        """The template that a trained student is asked by: that of examples that end in answers."""
        return self.setting.prompt

    @property
    def shares(self) -> Mapping[str, float]:
        """Each task's share of the loss, as a mean over its tokens; {}: tokens are all alike."""
        return {}

    @abc.abstractmethod
    def examples(self, records: Sequence[Record]) -> list[Example]:
        """The examples of the training records, which have several where questions have."""

    def objective(self, tokenized: TokenizedSet, examples: Sequence[Example]) -> Objective:
        """What is minimised.

        Args:
          tokenized: the examples that fit the student, as tokens.
          examples: the same, in the same order.
        """
        del tokenized, examples
        return Objective()
