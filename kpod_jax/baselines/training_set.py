"""The examples that a student is trained on, as tokens, with what each counts.

Letters: N examples.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from kpod_jax.baselines.protocol import Example, Method, Objective
from kpod_jax.data import pairs
from kpod_jax.data.prepare import Data
from kpod_jax.data.records import Ragged, Record, Rejected
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.models.student import Student
from kpod_jax.utils.errors import UserError

# (records, each one's prompt, each one's answer sentence or "") -> tokens, those left out
Tokenize = Callable[
    [Sequence[Record], Sequence[str], Sequence[str]], tuple[TokenizedSet, list[Rejected]]
]


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """N examples as tokens.

    Attributes:
      tokenized: the examples.
      objective: what is minimised.
      weights: [N] float32 that all of an example's loss is multiplied by; None is 1.
      start_steps: [N] int32, c_i: leading steps that are context; None where a curriculum says it.
      groups: that pairs are drawn from; None where rows stand alone.
      prompt: that the trained student is asked by, in its form; "" is the student's own.
      notes: what is said when training starts.
      tasks: number of examples of each task.
      left_out: examples that do not fit the student.
    """

    tokenized: TokenizedSet
    objective: Objective = dataclasses.field(default_factory=Objective)
    weights: np.ndarray | None = None
    start_steps: np.ndarray | None = None
    groups: Ragged | None = None
    prompt: str = ""
    notes: tuple[str, ...] = ()
    tasks: dict[str, int] = dataclasses.field(default_factory=dict)
    left_out: tuple[Rejected, ...] = ()

    def __str__(self) -> str:
        """How many examples a method made, by task, and how many do not fit; "" of records."""
        if not self.tasks:
            return ""
        found = [f"{count} {task}".rstrip() for task, count in self.tasks.items()]
        if self.left_out:
            found.append(f"{len(self.left_out)} left out (records/left_out.jsonl)")
        if self.objective.note:
            found.append(self.objective.note)
        return f"examples: {', '.join(found)}; "


def make_training_set(method: Method | None, student: Student, data: Data) -> TrainingSet:
    """What a student is trained on: the records, or a method's examples of them.

    Args:
      method: that makes examples of its own; None: the records are the examples.
      student: model and tokenizer.
      data: the training records.

    Raises:
      UserError: see `make`; or prompts that end in another token than the one it is asked by.
    """
    if method is None:
        return TrainingSet(data.train)
    resolved, start_of = functools.cache(student.resolve_prompt), student.decoder_start
    asked = resolved(method.prompt)

    def tokenize(
        records: Sequence[Record], prompts: Sequence[str], sentences: Sequence[str]
    ) -> tuple[TokenizedSet, list[Rejected]]:
        if prompts and start_of(resolved(prompts[0])) != start_of(asked):
            raise UserError(
                f"The prompt that the student is asked by, {asked!r}, ends in another token than "
                f"those that it is trained on, {prompts[0][-80:]!r}; expected prompts that end "
                "alike."
            )
        return student.tokenize(records, [*map(resolved, prompts)], sentences, need_rationale=False)

    found = make(method, data.records("train"), tokenize)
    return dataclasses.replace(found, prompt=asked, notes=tuple(method.notes))


def make(method: Method, records: Sequence[Record], tokenize: Tokenize) -> TrainingSet:
    """A method's examples of some records.

    Args:
      method: makes the examples.
      records: of the training split.
      tokenize: under the student's limits.

    Raises:
      UserError: no example is left, an example is none, or two have the same id.
    """
    all_made = method.examples(records)
    made = {example.record.id: example for example in all_made}
    name = type(method).__name__
    if len(made) < len(all_made):
        twice = Counter(example.record.id for example in all_made).most_common(1)[0][0]
        raise UserError(f"{name} makes two examples with the id {twice!r}; expected different ids.")
    for example in all_made:
        if not example.answer_sentence and not example.record.steps:
            raise UserError(
                f"{name} makes the example {example.record.id!r} with neither a rationale nor an "
                "answer sentence; expected something to learn."
            )
    targets = [_target(example, method.setting.answer_template) for example in all_made]
    tokenized, left_out = tokenize(
        [record for record, _ in targets],
        [example.prompt for example in all_made],
        [sentence for _, sentence in targets],
    )
    if not len(tokenized):
        why = "; ".join(f"{bad.id}: {bad.reason}" for bad in left_out[:3]) or "it made none"
        raise UserError(
            f"{name} has no example that fits the student: {why}. Raise "
            "student.max_question_tokens and max_target_tokens, or mend the data."
        )
    examples = [made[record.id] for record in tokenized.records]
    given_N = np.array([example.rationale_given for example in examples])
    objective = method.objective(tokenized, examples)
    return TrainingSet(
        tokenized,
        objective,
        weights=task_weights(tokenized, examples, method),
        start_steps=np.where(given_N, tokenized.num_steps, 0).astype(np.int32),
        groups=pairs.groups_of([e.group for e in examples]) if objective.pairs else None,
        tasks=dict(Counter(example.task for example in examples)),
        left_out=tuple(left_out),
    )


def _target(example: Example, template: str) -> tuple[Record, str]:
    """The record whose rationale begins the target, and the answer sentence that ends it.

    Where the rationale is given, so is the sentence up to its answer: it becomes a last step.
    """
    record = example.record
    if not example.answer_sentence:
        return record, ""
    lead, _, end = template.partition("{answer}")
    if not example.rationale_given or not lead.strip():
        return record, template
    if record.rationale and not record.rationale[-1].isspace():
        lead = " " + lead
    steps = (*record.steps, lead)
    given = dataclasses.replace(record, steps=steps, keypoints=None, hardness=None)
    return given, "{answer}" + end


def task_weights(
    tokenized: TokenizedSet, examples: Sequence[Example], method: Method
) -> np.ndarray | None:
    """[N] float32 that give each task its share of the loss; None where there are no shares.

    A loss is a mean over supervised tokens. A task with the share s and T_s of all T supervised
    tokens has the weight s T / T_s, so that over an epoch its mean token loss counts by s, however
    long its targets are.

    Raises:
      UserError: a task has no share.
    """
    shares = method.shares
    if not shares:
        return None
    tasks = [example.task for example in examples]
    if unknown := set(tasks) - shares.keys():
        raise UserError(
            f"{type(method).__name__} has no share for the task {min(unknown)!r}; its shares are "
            f"of {', '.join(map(repr, shares))}."
        )
    given_N = np.array([example.rationale_given for example in examples])
    counts_N = tokenized.targets.lengths - np.where(given_N, tokenized.rationale_lengths, 0)
    totals = {task: counts_N[np.array([t == task for t in tasks])].sum() for task in set(tasks)}
    whole = sum(shares[task] for task in totals)
    scale = counts_N.sum() / whole
    return np.array([shares[task] * scale / totals[task] for task in tasks], np.float32)
