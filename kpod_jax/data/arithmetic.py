"""The built-in task: multi-step word problems whose keypoints and hard steps are known.

A problem is a story about one quantity that a few operations change. The rationale explains one
operation a step, in running text, and every step opens with its number: "Step 2: Then, as line 3
says, we find that 12 - 5 = 7 pens." So the choice between another step and the answer is one token
against one, "Step" or "Therefore". The numbers and the operators decide the answer; the rest is
filler, and so are the numbers that only say where something is written ("as line 3 says"). All
quantities are whole numbers from 1 to 24.

How hard a step is, is how much it puts together: filler 0; the first operation 1, a sentence of the
story; others 2, the last result and the next sentence; 3 where two earlier results meet.

Everything is a function of (split, seed, task). A question belongs to the split that its hash
names, so splits share no question whatever the seeds, the sizes and the tasks; and questions do not
depend on how verbose their rationales are.
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
# Sixteenths of all questions. "fresh" is for what must not know the training answers, such as the
# pre-training of a student and the answerer of the token weighting.
_SPLITS = {"train": range(6), "validation": range(6, 8), "test": range(8, 10)}
_SPLITS["fresh"] = range(10, 16)


@dataclasses.dataclass(frozen=True)
class Task:
    """The two knobs of the task.

    Attributes:
      verbosity: how much filler there is, from 0, equations in a clause each, to 1.
      operations: least and most operations of a problem.
    """

    verbosity: float = 0.6
    operations: tuple[int, int] = (2, 4)


@dataclasses.dataclass(frozen=True)
class _Story:
    """What a question tells.

    Attributes:
      words: that its sentences are formatted with.
      operations: in order.
      start: the quantity before the first one.
      operands: b of each; 0 where it is an earlier result.
    """

    words: dict[str, str]
    operations: tuple[Operation, ...]
    start: int
    operands: tuple[int, ...]

    @classmethod
    def of(cls, question: str) -> "_Story":
        """Reads a question of this task.

        Raises:
          ValueError: it is none.
        """
        words = {"box": ""}
        operations, operands, start = [], [], None
        for sentence in question.split(". ")[:-1]:
            known = stories.ALL[len(stories.STARTS) :] if operations else stories.STARTS
            for operation in known:
                if found := _pattern(operation.event).fullmatch(sentence + "."):
                    words |= found.groupdict()
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
        """(a, b, c) of each operation, or None where a quantity is impossible."""
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
        """The last quantity, or None."""
        return None if (found := self.equations) is None else found[-1][2]

    def with_another_number(self) -> "list[_Story]":
        """Every possible story in which the start or one operand is another."""
        low, high = self.operations[0].start
        found = [dataclasses.replace(self, start=a) for a in range(low, high + 1)]
        for i, operation in enumerate(self.operations):
            low, high = operation.operand
            before, after = self.operands[:i], self.operands[i + 1 :]
            found += [
                dataclasses.replace(self, operands=(*before, b, *after))
                for b in range(low, high + 1)
            ]
        return [story for story in found if story != self and story.answer is not None]

    def question(self, rng: np.random.Generator) -> str:
        """The story, as often as not with a number that does not matter, and what is asked."""
        events, quantity = [], self.start
        for operation, b in zip(self.operations, self.operands, strict=True):
            event = operation.event.format(**self.words, a=quantity, b=b)
            events.append(event[0].upper() + event[1:])
        if rng.random() < 0.5:
            place = int(rng.integers(len(events) + 1))
            text, number = _pick(rng, stories.DISTRACTORS), int(rng.integers(2, LARGEST + 1))
            events.insert(place, text.format(number, Name=self.words["name"]))
        asked = self.operations[-1].question or "How many {items} does {name} have?"
        return " ".join([*events, asked.format(**self.words)])

    def explained(
        self, rng: np.random.Generator, question: str, id_: str, verbosity: float
    ) -> Record:
        """The record of a question with a rationale, whose answer its operations lead to."""
        found, rationale = self.equations, _Rationale(rng, verbosity)
        assert found is not None
        for i, (operation, equation) in enumerate(zip(self.operations, found, strict=True)):
            hardness = 1.0 if i == 0 else 3.0 if operation.earlier else 2.0
            rationale.add(operation.sign, operation.unit or self.words["items"], equation, hardness)
        return rationale.record(question, found[-1][2], id_)


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """Matches what a template of an event can be formatted to."""
    kinds, words = {"a": r"\d+", "b": r"\d+"}, r"\w+"
    return re.compile(
        "".join(
            re.escape(text) + (f"(?P<{name}>{kinds.get(name, words)})" if name else "")
            for text, name, _, _ in string.Formatter().parse(template[0].upper() + template[1:])
        )
    )


def _rng_of(question: str, purpose: str = "") -> np.random.Generator:
    """Randomness that question and purpose decide, whatever the data set's size and order."""
    digest = hashlib.sha256(f"{purpose} {question}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8]))


class _Rationale:
    """Steps as they are made, with what is known of them."""

    def __init__(self, rng: np.random.Generator, verbosity: float) -> None:
        self._rng, self._verbosity = rng, verbosity
        self._text = ""
        self._ends: list[int] = []
        self._keypoints: list[tuple[int, int]] = []
        self._hardness: list[float] = []

    def add(self, sign: str, unit: str, equation: tuple[int, int, int], hardness: float) -> None:
        """Explains one operation, perhaps after a step of filler."""
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

    def _chance(self, share: float = 1.0) -> bool:
        """Whether there is filler at a place."""
        return self._rng.random() < share * self._verbosity

    def _numbered(self, options: Sequence[str]) -> str:
        """One of them; some have a number in them."""
        return _pick(self._rng, options).format(int(self._rng.integers(1, LARGEST + 1)))

    def _begin_step(self) -> None:
        self._text += f"Step {len(self._ends) + 1}: "

    def _end_step(self, hardness: float) -> None:
        self._text += " "
        self._ends.append(len(self._text))
        self._hardness.append(hardness)

    def record(self, question: str, answer: int, id_: str = "") -> Record:
        """The example."""
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
    """Makes the first `count` different problems of a split.

    Args:
      split: "train", "validation", "test" or "fresh"; no two share a question.
      count: how many, not below 0.
      seed: of the sequence of problems; a longer list starts with the shorter one.
      task: its knobs; None is the default task.

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
            records.append(story.explained(_rng_of(question), question, id_, task.verbosity))
    return records


def rationales_per_question(
    record: Record, count: int, verbosity: float = Task.verbosity
) -> list[Record]:
    """A problem with `count` different explanations: other filler.

    Args:
      record: of this task.
      count: at least 1; a task without filler has few explanations, and then fewer are returned.
      verbosity: of the others.

    Returns:
      The record itself, then others of the same question and answer, whose ids end in #2, #3, …;
      a longer list starts with the shorter one.
    """
    story, known, result = _Story.of(record.question), {record.rationale}, [record]
    rng = _rng_of(record.question, "others")
    for _ in range(50 * count):
        if len(result) == count:
            break
        other = story.explained(rng, record.question, f"{record.id}#{len(result) + 1}", verbosity)
        if other.rationale not in known:
            known.add(other.rationale)
            result.append(other)
    return result


def counterfactual(record: Record, verbosity: float = Task.verbosity) -> Record | None:
    """The same question with a rationale that gets one number of the story wrong.

    All that follows is calculated rightly from that number, so the rationale supports its answer,
    which is another one than the record's.

    Args:
      record: of this task.
      verbosity: of the rationale.

    Returns:
      A record whose id ends in #counterfactual, or None where no number can be changed.
    """
    story = _Story.of(record.question)
    options = [other for other in story.with_another_number() if other.answer != story.answer]
    if not options:
        return None
    rng = _rng_of(record.question, f"counterfactual {record.id}")
    other = _pick(rng, options)
    return other.explained(rng, record.question, f"{record.id}#counterfactual", verbosity)


class Equation(NamedTuple):
    """A single operation, as the rationales write it, cut before its result."""

    before: str
    result: str


def equations() -> list[Equation]:
    """Every operation that rationales can hold."""
    result = []
    for operation in {operation.sign: operation for operation in stories.ALL}.values():
        for a in range(1, LARGEST + 1):
            for b in range(1, LARGEST + 1):
                if (c := operation.apply(a, b)) is not None:
                    result.append(Equation(f"{a} {operation.sign} {b} =", str(c)))
    return result


def _stories(rng: np.random.Generator, operations: tuple[int, int]) -> Iterator[tuple[_Story, str]]:
    """Possible stories and their questions, without end."""
    while True:
        story = _story(rng, int(rng.integers(operations[0], operations[1] + 1)))
        if story.answer is not None:
            yield story, story.question(rng)


def _pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def _story(rng: np.random.Generator, count: int) -> _Story:
    """A story, possible or not."""
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
