"""The answerer of the token weighting: it calculates, goes on from a prefix, and bears masks.

A model that answers from whole rationales only copies the last result, so masks learned from it
keep results alone. What makes an operand or an operator worth keeping is that the answer can be
worked out from them before it is written. So the student's knowledge of single operations is
rehearsed all along, while the text around them grows: a step, a rationale so far, the question with
it. Every source ends like the answerer's input in mask learning: with EOS, right behind the prefix.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import transformers

from kpod_jax.data import arithmetic
from kpod_jax.data.records import Record
from kpod_jax.models.student import Student
from kpod_jax.pretrain import rows
from kpod_jax.pretrain.rows import Row, Shape

SHAPES = {
    "operation": Shape(128, 8, 4),
    "step": Shape(96, 32, 4),
    "next_result": Shape(64, 64, 4),
    "last_result": Shape(48, 96, 4),
    "prefix": Shape(48, 96, 4),
}
# So many steps, cycling through kinds of rows.
PHASES = (
    (400, ("operation", "step", "step")),
    (2400, ("operation", "step", "next_result", "last_result", "next_result", "last_result")),
    (
        4000,
        (
            *("prefix", "last_result", "prefix", "next_result"),
            *("prefix", "last_result", "prefix", "step"),
        ),
    ),
)
_LEARNING_RATE = 2e-3


class _Result(NamedTuple):
    """The result of a step: its tokens, where it begins, and where its step begins and ends."""

    ids: list[int]
    start: int
    step: int
    end: int

    def cut(self, rng: np.random.Generator) -> int:
        """A place right before the result, or, as often, any behind it in the same step."""
        behind = self.start + len(self.ids)
        return self.start if rng.random() < 0.5 else int(rng.integers(behind, self.end + 1))


@dataclasses.dataclass(frozen=True)
class _Example:
    """Token ids of a record, and the results of its steps."""

    question: list[int]
    rationale: list[int]
    answer: list[int]
    results: list[_Result]


class Mixture:
    """Batches of each kind of `SHAPES`, as functions of (seed, step)."""

    def __init__(
        self,
        tokenizer: transformers.PreTrainedTokenizerFast,
        seed: int,
        *,
        split: str = "fresh",
        problems: int = 30000,
        operations: tuple[int, int] = (1, 3),
    ) -> None:
        self._eos: Any = tokenizer.eos_token_id
        self._mask: Any = tokenizer.convert_tokens_to_ids("<extra_id_0>")
        equations = arithmetic.equations()
        columns = [tokenizer([e[part] for e in equations]).input_ids for part in (0, 1)]  # pyright: ignore
        self._equations: list[Row] = list(zip(*columns, strict=True))
        records = arithmetic.generate(split, problems, seed, operations)
        self._examples = _examples(records, tokenizer)

    def batch(self, kind: str, seed: int, step: int) -> dict[str, np.ndarray]:
        """A batch of `rows.batch_of`."""
        rng = np.random.default_rng([seed, step])
        make: Callable[[np.random.Generator], Row] = {
            "operation": self._operation,
            "step": self._step,
            "next_result": self._next_result,
            "last_result": self._last_result,
            "prefix": self._prefix,
        }[kind]
        shape, found = SHAPES[kind], []
        while len(found) < shape.rows:
            row = make(rng)
            if len(row[0]) < shape.source:  # The few that are longer would make all batches wider.
                found.append(row)
        return rows.batch_of(found, shape, self._eos)

    def _example(self, rng: np.random.Generator) -> _Example:
        return self._examples[int(rng.integers(len(self._examples)))]

    def _operation(self, rng: np.random.Generator) -> Row:
        """An operation, such as "16 / 2 =", and its result."""
        return self._equations[int(rng.integers(len(self._equations)))]

    def _step(self, rng: np.random.Generator) -> Row:
        """One step, cut before its result or anywhere behind it, and the result."""
        example = self._example(rng)
        result = example.results[int(rng.integers(len(example.results)))]
        return example.rationale[result.step : result.cut(rng)], result.ids

    def _next_result(self, rng: np.random.Generator) -> Row:
        """The same with the steps before it."""
        example = self._example(rng)
        result = example.results[int(rng.integers(len(example.results)))]
        return example.rationale[: result.cut(rng)], result.ids

    def _last_result(self, rng: np.random.Generator) -> Row:
        """A question and its rationale up to the last result or beyond, and the answer."""
        example = self._example(rng)
        return example.question + example.rationale[: example.results[-1].cut(rng)], example.answer

    def _prefix(self, rng: np.random.Generator) -> Row:
        """A question and any prefix of its rationale, tokens of half of them masked.

        The prefix is any as often as the whole and the one up to the last result together: a
        model that saw those two alone would be sure of itself where nothing can be known yet.
        """
        example = self._example(rng)
        size, chance = len(example.rationale), rng.random()
        if chance < 0.3:
            end = size
        elif chance < 0.5:
            end = example.results[-1].start
        else:
            end = int(rng.integers(1, size + 1))
        rationale = np.array(example.rationale[:end])
        if rng.random() < 0.5:
            rationale[rng.random(end) > rng.random()] = self._mask
        return example.question + rationale.tolist(), example.answer


def _examples(records: list[Record], tokenizer: Any) -> list[_Example]:
    rationales = tokenizer([r.rationale for r in records], return_offsets_mapping=True)
    questions = tokenizer([r.question for r in records]).input_ids
    answers = tokenizer([r.answer for r in records]).input_ids
    result = []
    for i, record in enumerate(records):
        ids = rationales.input_ids[i]
        ends = np.array(rationales.offset_mapping[i])[:, 1]
        results, start = [], 0
        for step in record.steps:
            stop = start + len(step)
            inside = [key for key in record.keypoints or () if start <= key[0] < stop]
            if inside:  # A step's last keypoint is its result.
                last_char = len(record.rationale[:stop].rstrip()) - 1
                places = [*inside[-1], start, last_char]
                places[1] -= 1
                first, last, begin, end = np.searchsorted(ends, places, side="right").tolist()
                results.append(_Result(ids[first : last + 1], first, begin, end + 1))
            start = stop
        result.append(_Example(questions[i], ids, answers[i], results))
    return result


def train_answerer(student: Student, params: dict, *, scale: float, seed: int) -> dict:
    """Trains the student to answer, by `PHASES`; `scale` scales their steps."""
    mixture = Mixture(student.tokenizer, seed)  # pyright: ignore[reportArgumentType]
    kinds = [
        of_phase[step % len(of_phase)]
        for steps, of_phase in PHASES
        for step in range(max(1, round(steps * scale)))
    ]
    return rows.train(
        student.module,  # pyright: ignore[reportArgumentType]
        params,
        kinds,
        lambda kind, step: mixture.batch(kind, seed, step),
        _LEARNING_RATE,
    )
