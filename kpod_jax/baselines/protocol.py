"""The interface of methods that create their own training examples.

A method maps records to examples: what the student reads, what it writes, and for which task.
Everything else (tokens, batches, the train step, evaluation) is the same for all methods. A method
whose loss is not plain cross entropy also provides an `Objective`.
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
    """The arguments that a method is created from.

    Attributes:
      options: the `baseline` section of the configuration, by key.
      data: name of the data set.
      answer_kind: kind of its answers, from `answers.KINDS`.
      step_separator: text that ends a step, for `split_steps`.
      prompt: prompt template of the configuration, `student.prompt`.
      answer_template: template of the answer sentence.
      seed: seed of the run, the only source of randomness in a method.
      token_lengths: maps texts to their numbers of student tokens, [N] int64.
      max_question_tokens: examples with longer prompts are left out.
      tokenizer: the student's tokenizer.
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
    """A training example.

    The target is the rationale, if there is one, followed by the answer sentence, if enabled.

    Attributes:
      record: question, steps (possibly none) and answer, with an id unique to this example.
      prompt: prompt template that contains `{question}`.
      answer_sentence: whether the target ends with the answer sentence; otherwise it is the
        rationale alone.
      task: name of the task; `Method.loss_fractions` divides the loss among tasks.
      rationale_given: whether the rationale, and the answer sentence up to the answer, are context,
        so that the student learns only the answer and what follows it.
      group: examples of the same group can be paired by the loss; "" for no group.
    """

    record: Record
    prompt: str
    answer_sentence: bool = True
    task: str = ""
    rationale_given: bool = False
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Objective:
    """The training objective.

    Attributes:
      loss: loss of a batch, see `train_step.Loss`.
      arrays: creates additional arrays for a batch, see `BatchSource`; None for none.
      pairs: whether rows 2 k and 2 k + 1 of a batch are two examples of one group.
      note: text reported along with the number of examples.
    """

    loss: Loss = cross_entropy
    arrays: Callable[[np.ndarray, int], Batch] | None = None
    pairs: bool = False
    note: str = ""


def row_layout_errors(config: Any) -> list[str]:
    """Returns what is wrong with a configuration for a loss that uses positions within a row."""
    distill = config.distill
    return [
        f"distill.{key}={value!r}: expected {expected!r} for {config.method}, whose loss depends "
        "on positions within a row, which this setting shifts"
        for key, value, expected in (
            ("pack_length", distill.pack_length, 0),
            ("input_steps", distill.input_steps, "decoder"),
        )
        if value != expected
    ]


class Method(abc.ABC):
    """Base class of methods, created from a `Setting` wherever one is needed.

    Attributes:
      keys: keys of `baseline` that the method reads; other keys do not affect its students.
      file_keys: those of `keys` that name files.
    """

    keys: ClassVar[tuple[str, ...]] = ()
    file_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, setting: Setting) -> None:
        """Stores the setting."""
        self.setting = setting

    @classmethod
    def config_errors(cls, config: Any) -> list[str]:
        """Returns what is wrong with a configuration for this method, one line per error."""
        del config
        return []

    @property
    def notes(self) -> Sequence[str]:
        """Lines to log when training starts, such as the limits of a black-box teacher."""
        return ()

    @property
    def prompt(self) -> str:
        """Prompt template for evaluation: that of the training examples that end in answers."""
        return self.setting.prompt

    @property
    def loss_fractions(self) -> Mapping[str, float]:
        """Fraction of the loss per task, as a mean over its tokens; {} for equal token weights."""
        return {}

    @abc.abstractmethod
    def examples(self, records: Sequence[Record]) -> list[Example]:
        """Returns the examples for the training records; a question may have several records."""

    def objective(self, tokenized: TokenizedSet, examples: Sequence[Example]) -> Objective:
        """Returns the training objective.

        Args:
          tokenized: the examples that fit the student's limits, as tokens.
          examples: the same examples, in the same order.
        """
        del tokenized, examples
        return Objective()
