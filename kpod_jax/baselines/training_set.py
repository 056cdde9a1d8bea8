"""The tokenized training examples of a student, with their weights.

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

# (records, a prompt per record, an answer sentence or "" per record) -> tokens, examples left out
Tokenize = Callable[
    [Sequence[Record], Sequence[str], Sequence[str]], tuple[TokenizedSet, list[Rejected]]
]


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """N tokenized examples.

    Attributes:
      tokenized: the examples.
      objective: the training objective.
      weights: [N] float32 loss weight per example; None for 1.
      start_steps: [N] int32, c_i, number of leading steps that are context; None if a curriculum
        chooses it.
      groups: groups that pairs are drawn from; None if rows are not paired.
      prompt: prompt template for evaluation, in the student's form; "" for the student's own.
      notes: lines to log when training starts.
      tasks: number of examples per task.
      left_out: examples that exceed the student's limits.
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
        """Returns the example counts by task and of those left out; "" without a method."""
        if not self.tasks:
            return ""
        parts = [f"{count} {task}".rstrip() for task, count in self.tasks.items()]
        if self.left_out:
            parts.append(f"{len(self.left_out)} left out (records/left_out.jsonl)")
        if self.objective.note:
            parts.append(self.objective.note)
        return f"examples: {', '.join(parts)}; "


def make_training_set(method: Method | None, student: Student, data: Data) -> TrainingSet:
    """Creates the training set: the records themselves, or the examples that a method creates.

    Args:
      method: creates the examples; None to train on the records themselves.
      student: model and tokenizer.
      data: the training records.

    Raises:
      UserError: as for `make`, or if the training prompts and the evaluation prompt end in
        different tokens.
    """
    if method is None:
        return TrainingSet(data.train)
    resolved, start_of = functools.cache(student.resolve_prompt), student.decoder_start
    eval_prompt = resolved(method.prompt)

    def tokenize(
        records: Sequence[Record], prompts: Sequence[str], sentences: Sequence[str]
    ) -> tuple[TokenizedSet, list[Rejected]]:
        if prompts and start_of(resolved(prompts[0])) != start_of(eval_prompt):
            raise UserError(
                f"The evaluation prompt {eval_prompt!r} ends in a different token than the "
                f"training prompts, {prompts[0][-80:]!r}; expected prompts that end in the same "
                "token."
            )
        return student.tokenize(records, [*map(resolved, prompts)], sentences, need_rationale=False)

    training_set = make_from_method(method, data.records("train"), tokenize)
    return dataclasses.replace(training_set, prompt=eval_prompt, notes=tuple(method.notes))


def make_from_method(method: Method, records: Sequence[Record], tokenize: Tokenize) -> TrainingSet:
    """Creates a method's examples for the given records.

    Args:
      method: creates the examples.
      records: the training split.
      tokenize: tokenizes the examples within the student's limits.

    Raises:
      UserError: if no example fits, an example has an empty target, or two have the same id.
    """
    all_examples = method.examples(records)
    by_id = {example.record.id: example for example in all_examples}
    name = type(method).__name__
    if len(by_id) < len(all_examples):
        duplicate = Counter(example.record.id for example in all_examples).most_common(1)[0][0]
        raise UserError(
            f"{name} creates two examples with the id {duplicate!r}; expected unique ids."
        )
    for example in all_examples:
        if not example.answer_sentence and not example.record.steps:
            raise UserError(
                f"{name} creates the example {example.record.id!r} with neither a rationale nor an "
                "answer sentence; expected at least one of them."
            )
    targets = [_target(example, method.setting.answer_template) for example in all_examples]
    tokenized, left_out = tokenize(
        [record for record, _ in targets],
        [example.prompt for example in all_examples],
        [sentence for _, sentence in targets],
    )
    if not len(tokenized):
        reasons = "; ".join(f"{bad.id}: {bad.reason}" for bad in left_out[:3])
        raise UserError(
            f"{name} has no example that fits the student: {reasons or 'it creates none'}. Raise "
            "student.max_question_tokens and student.max_target_tokens, or fix the data."
        )
    examples = [by_id[record.id] for record in tokenized.records]
    given_N = np.array([example.rationale_given for example in examples])
    objective = method.objective(tokenized, examples)
    return TrainingSet(
        tokenized,
        objective,
        weights=task_weights(tokenized, examples, method),
        start_steps=np.where(given_N, tokenized.num_steps, 0).astype(np.int32),
        groups=pairs.group_by_name([e.group for e in examples]) if objective.pairs else None,
        tasks=dict(Counter(example.task for example in examples)),
        left_out=tuple(left_out),
    )


def _target(example: Example, template: str) -> tuple[Record, str]:
    """Returns the record whose rationale starts the target, and the answer sentence that ends it.

    If the rationale is given, the answer sentence up to the answer becomes its last step.
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
    """Computes example weights that give each task its fraction of the loss, [N] float32.

    The loss is a mean over supervised tokens. A task with fraction s and T_s of the T supervised
    tokens gets weight s T / T_s, so over an epoch its mean token loss counts with weight s,
    regardless of the length of its targets.

    Returns:
      The weights, or None if the method defines no fractions.

    Raises:
      UserError: if a task has no fraction.
    """
    fractions = method.loss_fractions
    if not fractions:
        return None
    tasks = [example.task for example in examples]
    if unknown := set(tasks) - fractions.keys():
        raise UserError(
            f"{type(method).__name__}.loss_fractions lacks the task {min(unknown)!r}; it has "
            f"entries for {', '.join(map(repr, fractions))}."
        )
    given_N = np.array([example.rationale_given for example in examples])
    counts_N = tokenized.targets.lengths - np.where(given_N, tokenized.rationale_lengths, 0)
    totals = {task: counts_N[np.array([t == task for t in tasks])].sum() for task in set(tasks)}
    scale = counts_N.sum() / sum(fractions[task] for task in totals)
    return np.array([fractions[task] * scale / totals[task] for task in tasks], np.float32)
