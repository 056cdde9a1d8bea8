"""The built-in task: multi-step word problems with known keypoints and known step hardness.

A problem is a story about one quantity that a few operations change. The rationale explains one
operation per step in prose, and every step opens with its number: "Step 2: Then, as line 3 says, we
find that 12 - 5 = 7 pens." A single token, "Step" or "Therefore", thus decides between another step
and the answer. Only the numbers and operators of the equations determine the answer; everything
else is filler, including numbers that merely cite a place ("as line 3 says"). All quantities are
integers from 1 to 24.

The hardness of a step measures how much it combines: 0 for filler; 1 for the first operation (one
sentence of the story); 2 for later operations (the last result and the next sentence); 3 for an
operation on two earlier results.

Everything is a function of (split, seed, task). The hash of a question determines its split, so
splits never share a question, whatever the seeds, sizes and tasks. Questions do not depend on the
verbosity of their rationales.
"""

import dataclasses
import functools
import hashlib
import re
import string
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from kpod_jax.data import stories
from kpod_jax.data.records import Record
from kpod_jax.data.stories import LARGEST, Operation

_T = TypeVar("_T")
# Sixteenths of all questions. "fresh" is for models that must not have seen the training answers:
# the pre-trained student and the answerer of the token weighting.
_SPLITS = {"train": range(6), "validation": range(6, 8), "test": range(8, 10)}
_SPLITS["fresh"] = range(10, 16)


@dataclasses.dataclass(frozen=True)
class Task:
    """The two settings of the task.

    Attributes:
      verbosity: amount of filler, from 0 (one clause per equation) to 1.
      operations: minimum and maximum number of operations per problem.
    """

    verbosity: float = 0.6
    operations: tuple[int, int] = (2, 4)


@dataclasses.dataclass(frozen=True)
class _Story:
    """The content of a question.

    Attributes:
      words: the words that fill the sentence templates.
      operations: the operations, in order.
      start: the quantity before the first operation.
      operands: b of each operation; 0 if b is an earlier result.
    """

    words: dict[str, str]
    operations: tuple[Operation, ...]
    start: int
    operands: tuple[int, ...]

    @classmethod
    def parse(cls, question: str) -> "_Story":
        """Parses a question of this task.

        Raises:
          ValueError: the question does not belong to this task.
        """
        words = {"box": ""}
        operations, operands, start = [], [], None
        for sentence in question.split(". ")[:-1]:
            candidates = stories.ALL[len(stories.STARTS) :] if operations else stories.STARTS
            for operation in candidates:
                if match := _pattern(operation.event).fullmatch(sentence + "."):
                    words |= match.groupdict()
                    operations.append(operation)
                    operands.append(int(words.pop("b", operation.operand[0])))
                    start = int(words.pop("a")) if start is None else start
                    break
        if start is None:
            raise ValueError(f"not a question of the built-in task: {question!r:.80}")
        words["he"] = "he" if words["name"] in stories.NAMES["he"] else "she"
        words["his"] = stories.HIS[words["he"]]
        return cls(words, tuple(operations), start, tuple(operands))

    @property
    def equations(self) -> list[tuple[int, int, int]] | None:
        """(a, b, c) of each operation, or None if any quantity is impossible."""
        result, quantities = [], [self.start]
        for operation, operand in zip(self.operations, self.operands, strict=True):
            a, b = quantities[-1], quantities[-2] if operation.earlier else operand
            c = operation.apply(a, b)
            if c is None:
                return None
            result.append((a, b, c))
            quantities.append(c)
        return result

    @property
    def answer(self) -> int | None:
        """The final quantity, or None if any quantity is impossible."""
        return None if (equations := self.equations) is None else equations[-1][2]

    def variants(self) -> "list[_Story]":
        """Returns every possible story that differs in the start or in one operand."""
        low, high = self.operations[0].start
        variants = [dataclasses.replace(self, start=a) for a in range(low, high + 1)]
        for i, operation in enumerate(self.operations):
            low, high = operation.operand
            before, after = self.operands[:i], self.operands[i + 1 :]
            variants += [
                dataclasses.replace(self, operands=(*before, b, *after))
                for b in range(low, high + 1)
            ]
        return [story for story in variants if story != self and story.answer is not None]

    def question(self, rng: np.random.Generator) -> str:
        """Writes the story and its question, half of the time with a distracting number."""
        events, quantity = [], self.start
        for operation, b in zip(self.operations, self.operands, strict=True):
            event = operation.event.format(**self.words, a=quantity, b=b)
            events.append(event[0].upper() + event[1:])
        if rng.random() < 0.5:
            place = int(rng.integers(len(events) + 1))
            text, number = _pick(rng, stories.DISTRACTORS), int(rng.integers(2, LARGEST + 1))
            events.insert(place, text.format(number, Name=self.words["name"]))
        final = self.operations[-1].question or "How many {items} does {name} have?"
        return " ".join([*events, final.format(**self.words)])

    def explain(
        self, rng: np.random.Generator, question: str, id_: str, verbosity: float
    ) -> Record:
        """Returns a record of the question, with a rationale and answer from this story."""
        equations, rationale = self.equations, _Rationale(rng, verbosity)
        assert equations is not None
        for i, (operation, equation) in enumerate(zip(self.operations, equations, strict=True)):
            hardness = 1.0 if i == 0 else 3.0 if operation.earlier else 2.0
            rationale.add(operation.sign, operation.unit or self.words["items"], equation, hardness)
        return rationale.record(question, equations[-1][2], id_)


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """Returns a pattern that matches every sentence an event template can produce."""
    numbers, word = {"a": r"\d+", "b": r"\d+"}, r"\w+"
    return re.compile(
        "".join(
            re.escape(text) + (f"(?P<{name}>{numbers.get(name, word)})" if name else "")
            for text, name, _, _ in string.Formatter().parse(template[0].upper() + template[1:])
        )
    )


def _rng_of(question: str, purpose: str = "") -> np.random.Generator:
    """Returns a generator seeded by question and purpose, not by data set size or order."""
    digest = hashlib.sha256(f"{purpose} {question}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8]))


class _Rationale:
    """A rationale under construction, with its step ends, keypoints and hardness."""

    def __init__(self, rng: np.random.Generator, verbosity: float) -> None:
        self._rng, self._verbosity = rng, verbosity
        self._text = ""
        self._ends: list[int] = []
        self._keypoints: list[tuple[int, int]] = []
        self._hardness: list[float] = []

    def add(self, sign: str, unit: str, equation: tuple[int, int, int], hardness: float) -> None:
        """Adds a step that explains one operation, sometimes after a filler step."""
        a, b, c = equation
        if self._chance(0.4):
            self._begin_step()
            self._text += self._numbered(stories.FILLER_STEPS)
            self._end_step(0.0)
        self._begin_step()
        if self._chance():
            self._text += _pick(self._rng, stories.OPENERS) + ", "
        if self._chance():
            kinds = (stories.ASIDES, stories.NUMBERED_ASIDES)
            self._text += self._numbered(_pick(self._rng, kinds)) + ", "
        self._text += _pick(self._rng, stories.CLAUSES)
        for piece in (str(a), sign, str(b), "=", str(c)):
            self._text += " "
            if piece != "=":
                self._keypoints.append((len(self._text), len(self._text) + len(piece)))
            self._text += piece
        self._text += f" {unit}"
        if self._chance():
            self._text += ", " + _pick(self._rng, stories.REMARKS)
        self._text += "."
        self._end_step(hardness)

    def _chance(self, scale: float = 1.0) -> bool:
        """Draws whether to insert filler."""
        return self._rng.random() < scale * self._verbosity

    def _numbered(self, options: Sequence[str]) -> str:
        """Picks an option and fills in a random number where it has a slot for one."""
        return _pick(self._rng, options).format(int(self._rng.integers(1, LARGEST + 1)))

    def _begin_step(self) -> None:
        self._text += f"Step {len(self._ends) + 1}: "

    def _end_step(self, hardness: float) -> None:
        self._text += " "
        self._ends.append(len(self._text))
        self._hardness.append(hardness)

    def record(self, question: str, answer: int, id_: str = "") -> Record:
        """Returns the finished rationale as a record."""
        text, starts = self._text.rstrip(), [0, *self._ends[:-1]]
        return Record(
            id=id_,
            question=question,
            steps=tuple(text[a:b] for a, b in zip(starts, self._ends, strict=True)),
            answer=str(answer),
            keypoints=tuple(self._keypoints),
            hardness=tuple(self._hardness),
        )


def generate(split: str, count: int, seed: int = 0, task: Task | None = None) -> list[Record]:
    """Generates the first `count` distinct problems of a split.

    Args:
      split: "train", "validation", "test" or "fresh"; no two splits share a question.
      count: number of problems, at least 0.
      seed: seed of the sequence of problems; a longer list starts with the shorter one.
      task: settings of the task; None: the defaults.

    Raises:
      ValueError: the split is unknown.
    """
    if split not in _SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(_SPLITS)}")
    task = task or Task()
    records: list[Record] = []
    questions = set()
    rng = np.random.default_rng([seed, list(_SPLITS).index(split)])
    for story, question in _stories(rng, task.operations):
        if len(records) >= count:
            break
        bucket = hashlib.sha256(question.encode()).digest()[0] % 16
        if bucket in _SPLITS[split] and question not in questions:
            questions.add(question)
            id_ = f"arithmetic-{split}-{len(records)}"
            records.append(story.explain(_rng_of(question), question, id_, task.verbosity))
    return records


def rationales_per_question(
    record: Record, count: int, verbosity: float = Task.verbosity
) -> list[Record]:
    """Returns `count` different rationales of a problem, which differ in their filler.

    Args:
      record: a record of this task.
      count: number of rationales, at least 1; fewer are returned where the task has too little
        filler for so many.
      verbosity: verbosity of the additional rationales.

    Returns:
      The record itself, then others with the same question and answer, whose ids end in #2, #3, …;
      a longer list starts with the shorter one.
    """
    story, seen, result = _Story.parse(record.question), {record.rationale}, [record]
    rng = _rng_of(record.question, "others")
    for _ in range(50 * count):
        if len(result) == count:
            break
        other = story.explain(rng, record.question, f"{record.id}#{len(result) + 1}", verbosity)
        if other.rationale not in seen:
            seen.add(other.rationale)
            result.append(other)
    return result


def counterfactual(record: Record, verbosity: float = Task.verbosity) -> Record | None:
    """Returns the same question with a rationale that misreads one number of the story.

    All later calculations are correct given that number, so the rationale supports its answer,
    which differs from the record's.

    Args:
      record: a record of this task.
      verbosity: verbosity of the rationale.

    Returns:
      A record whose id ends in #counterfactual, or None if no number can be changed.
    """
    story = _Story.parse(record.question)
    options = [other for other in story.variants() if other.answer != story.answer]
    if not options:
        return None
    rng = _rng_of(record.question, f"counterfactual {record.id}")
    other = _pick(rng, options)
    return other.explain(rng, record.question, f"{record.id}#counterfactual", verbosity)


class Equation(NamedTuple):
    """An operation as rationales write it, split before its result."""

    before: str
    result: str


def equations() -> list[Equation]:
    """Returns every operation that can occur in a rationale."""
    result = []
    for operation in {operation.sign: operation for operation in stories.ALL}.values():
        for a in range(1, LARGEST + 1):
            for b in range(1, LARGEST + 1):
                if (c := operation.apply(a, b)) is not None:
                    result.append(Equation(f"{a} {operation.sign} {b} =", str(c)))
    return result


def _stories(rng: np.random.Generator, operations: tuple[int, int]) -> Iterator[tuple[_Story, str]]:
    """Yields possible stories and their questions, endlessly."""
    while True:
        story = _story(rng, int(rng.integers(operations[0], operations[1] + 1)))
        if story.answer is not None:
            yield story, story.question(rng)


def _pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def _story(rng: np.random.Generator, count: int) -> _Story:
    """Draws a story, which may be impossible."""
    he = _pick(rng, ["he", "she"])
    words = {
        "he": he,
        "his": stories.HIS[he],
        "name": _pick(rng, stories.NAMES[he]),
        "items": _pick(rng, stories.ITEMS),
        "box": _pick(rng, stories.BOXES),
    }
    start, kind = _pick(rng, stories.STARTS), rng.random()
    operations = [start, *(_pick(rng, stories.MIDDLES) for _ in range(count - 1))]
    if count > 2 and kind < 0.35:
        operations[-2:] = _pick(rng, stories.COMPARISONS), stories.TOGETHER
    elif count > 1 and kind < 0.7:
        operations[-1] = _pick(rng, (*stories.ENDS, *stories.COMPARISONS))
    return _Story(
        words,
        tuple(operations),
        int(rng.integers(start.start[0], start.start[1] + 1)),
        tuple(int(rng.integers(o.operand[0], o.operand[1] + 1)) for o in operations),
    )
