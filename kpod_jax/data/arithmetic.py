"""The built-in task: multi-step word problems whose keypoints and hard steps are known.

A problem is a story about one quantity that two or three operations change. The rationale explains
one operation a step, in running text: the numbers, the operator and words that do arithmetic
("twice", "dozen") decide the answer; the rest is filler, and so are the numbers that only say
where something is written ("on page 12"). All quantities are whole numbers from 1 to 40.

Everything is a function of (split, seed). A question belongs to the split that its hash names, so
splits share no question whatever the seeds and the sizes.
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
class _Story:
    """What a question tells.

    Attributes:
      words: that its sentences are formatted with.
      operations: in order.
      start: the quantity before the first one.
      operands: of each, 0 where it has none.
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
            known = stories.MIDDLES + stories.ENDS if operations else stories.STARTS
            for operation in known:
                if found := _pattern(operation.event).fullmatch(sentence + "."):
                    words |= found.groupdict()
                    operations.append(operation)
                    operands.append(int(words.pop("b", 0)))
                    start = int(words.pop("a")) if start is None else start
                    break
        if start is None:
            raise ValueError(f"not a question of the built-in task: {question!r:.80}")
        words["he"] = "he" if words["name"] in stories.NAMES["he"] else "she"
        words["his"] = stories.HIS[words["he"]]
        return cls(words, tuple(operations), start, tuple(operands))

    @property
    def quantities(self) -> list[int] | None:
        """The quantity at the start and after each operation, or None where one is impossible."""
        result = [self.start]
        for operation, operand in zip(self.operations, self.operands, strict=True):
            c = operation.apply(result[-1], operand)
            if c is None or not 1 <= c <= LARGEST:
                return None
            result.append(c)
        return result

    @property
    def answer(self) -> int | None:
        """The last quantity, or None."""
        return None if (quantities := self.quantities) is None else quantities[-1]

    def with_another_number(self) -> "list[_Story]":
        """Every possible story in which the start or one operand is another."""
        low, high = self.operations[0].start
        found = [dataclasses.replace(self, start=a) for a in range(low, high + 1)]
        for i, operation in enumerate(self.operations):
            low, high = operation.operand or (0, -1)
            before, after = self.operands[:i], self.operands[i + 1 :]
            found += [
                dataclasses.replace(self, operands=(*before, b, *after))
                for b in range(low, high + 1)
            ]
        return [story for story in found if story != self and story.answer is not None]

    def explained(self, rng: np.random.Generator, question: str, id_: str) -> Record:
        """A rationale for it, whose answer its operations lead to."""
        quantities, rationale = self.quantities, _Rationale()
        assert quantities is not None
        for i, (operation, b) in enumerate(zip(self.operations, self.operands, strict=True)):
            rationale.add(rng, operation, self.words, quantities[i], b, quantities[i + 1])
        return rationale.record(question, quantities[-1], id_)


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    """Matches what a template of an event can be formatted to."""
    kinds, words = {"a": r"\d+", "b": r"\d+"}, r"\w+"
    return re.compile(
        "".join(
            re.escape(text) + (f"(?P<{name}>{kinds.get(name, words)})" if name else "")
            for text, name, _, _ in string.Formatter().parse(template)
        )
    )


def _rng_of(record: Record, purpose: str = "") -> np.random.Generator:
    """Randomness that question and purpose decide, whatever the data set's size and order."""
    digest = hashlib.sha256(f"{purpose} {record.question}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8]))


class _Rationale:
    """Steps as they are made, with what is known of them."""

    def __init__(self) -> None:
        self._text = ""
        self._ends: list[int] = []
        self._keypoints: list[tuple[int, int]] = []
        self._hardness: list[float] = []

    def add(
        self, rng: np.random.Generator, operation: Operation, words: dict, a: int, b: int, c: int
    ) -> None:
        """Explains one operation, perhaps after a step of filler."""
        if rng.random() < 0.15:
            filler = _pick(rng, stories.FILLER_STEPS)
            self._text += filler.format(int(rng.integers(1, LARGEST + 1))) + " "
            self._end_step(0.0)
        self._text += _pick(rng, stories.OPENERS) + ", "
        chance = rng.random()
        if chance < 0.25:
            self._text += _pick(rng, stories.ASIDES) + ", "
        elif chance < 0.5:
            aside = _pick(rng, stories.NUMBERED_ASIDES)
            self._text += aside.format(int(rng.integers(1, LARGEST + 1))) + ", "
        before, after = _pick(rng, operation.clauses).split("{eq}")
        self._text += before.format(**words)
        for place, piece in enumerate(_pick(rng, operation.equations)):
            self._text += " " if place else ""
            start = len(self._text)
            self._text += piece.strip("[]").format(a=a, b=b, c=c)
            if piece[0] in "{[":
                self._keypoints.append((start, len(self._text)))
        self._text += after.format(**words) + ". "
        self._end_step(operation.hardness + _carries(a, b, c))

    def _end_step(self, hardness: float) -> None:
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


def generate(
    split: str, count: int, seed: int = 0, operations: tuple[int, int] = (2, 3)
) -> list[Record]:
    """Makes the first `count` different problems of a split.

    Args:
      split: "train", "validation", "test" or "fresh"; no two share a question.
      count: how many, not below 0.
      seed: of the sequence of problems; a longer list starts with the shorter one.
      operations: least and most operations of a problem; the task itself has 2 or 3.

    Raises:
      ValueError: the split is unknown.
    """
    if split not in _SPLITS:
        raise ValueError(f"unknown split {split!r}; expected one of {', '.join(_SPLITS)}")
    records: list[Record] = []
    questions = set()
    rng = np.random.default_rng([seed, list(_SPLITS).index(split)])
    for problem in _problems(rng, operations):
        if len(records) >= count:
            break
        question = problem.question
        bucket = hashlib.sha256(question.encode()).digest()[0] % 16
        if bucket in _SPLITS[split] and question not in questions:
            questions.add(question)
            records.append(dataclasses.replace(problem, id=f"arithmetic-{split}-{len(records)}"))
    return records


def rationales_per_question(record: Record, count: int) -> list[Record]:
    """A problem with `count` different explanations: openers, asides, clauses, forms of equations.

    Args:
      record: of this task.
      count: at least 1.

    Returns:
      The record itself, then others of the same question and answer, whose ids end in #2, #3, …;
      a longer list starts with the shorter one.
    """
    story, known, result = _Story.of(record.question), {record.rationale}, [record]
    rng = _rng_of(record)
    while len(result) < count:
        other = story.explained(rng, record.question, f"{record.id}#{len(result) + 1}")
        if other.rationale not in known:
            known.add(other.rationale)
            result.append(other)
    return result


def counterfactual(record: Record) -> Record | None:
    """The same question with a rationale that gets one number of the story wrong.

    All that follows is calculated rightly from that number, so the rationale supports its answer,
    which is another one than the record's.

    Args:
      record: of this task.

    Returns:
      A record whose id ends in #counterfactual, or None where no number can be changed.
    """
    story = _Story.of(record.question)
    options = [other for other in story.with_another_number() if other.answer != story.answer]
    if not options:
        return None
    rng = _rng_of(record, f"counterfactual {record.id}")
    other = _pick(rng, options)
    return other.explained(rng, record.question, f"{record.id}#counterfactual")


class Equation(NamedTuple):
    """A single operation, as the rationales write it, cut before its result."""

    before: str
    result: str


def equations() -> list[Equation]:
    """Every operation that rationales can hold, in each way of writing it."""
    result = []
    for operation in dict.fromkeys((o.apply, o.equations) for o in stories.ALL):
        apply, forms = operation
        for pieces in forms:
            template = " ".join(piece.strip("[]") for piece in pieces)
            operands = range(1, LARGEST + 1) if "{b}" in template else (0,)
            for a in range(1, LARGEST + 1):
                for b in operands:
                    c = apply(a, b)
                    if c is not None and 1 <= c <= LARGEST:
                        text = template.format(a=a, b=b, c=c)
                        before, _, number = text.rpartition(" ")
                        result.append(Equation(before, number))
    return list(dict.fromkeys(result))


def _problems(rng: np.random.Generator, operations: tuple[int, int]) -> Iterator[Record]:
    """Problems without end."""
    while True:
        problem = _problem(rng, int(rng.integers(operations[0], operations[1] + 1)))
        if problem is not None:
            yield problem


def _pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    return options[int(rng.integers(len(options)))]


def _problem(rng: np.random.Generator, count: int) -> Record | None:
    """One problem, or None where a quantity would leave its range."""
    he = _pick(rng, ["he", "she"])
    words = {
        "he": he,
        "his": stories.HIS[he],
        "name": _pick(rng, stories.NAMES[he]),
        "items": _pick(rng, stories.ITEMS),
        "box": _pick(rng, stories.BOXES),
    }
    operations = [_pick(rng, stories.STARTS)]
    operations += [_pick(rng, stories.MIDDLES) for _ in range(count - 1)]
    if count > 1 and rng.random() < 0.35:
        operations[-1] = _pick(rng, stories.ENDS)

    events, rationale = [], _Rationale()
    asked = "How many {items} does {name} have?"
    quantity = int(rng.integers(operations[0].start[0], operations[0].start[1] + 1))
    for operation in operations:
        if operation.operand is None:
            operand = 0
        else:
            operand = int(rng.integers(operation.operand[0], operation.operand[1] + 1))
        result = operation.apply(quantity, operand)
        if result is None or not 1 <= result <= LARGEST:
            return None
        events.append(operation.event.format(**words, a=quantity, b=operand))
        rationale.add(rng, operation, words, quantity, operand, result)
        asked = operation.question or asked
        quantity = result
    if rng.random() < 0.5:
        place = int(rng.integers(len(events) + 1))
        text = _pick(rng, stories.DISTRACTORS)
        events.insert(place, text.format(int(rng.integers(2, LARGEST + 1)), Name=words["name"]))
    return rationale.record(" ".join([*events, asked.format(**words)]), quantity)


def _carries(a: int, b: int, c: int) -> bool:
    """Whether a + b = c carries, or a - b = c borrows."""
    return (c == a + b and a % 10 + b % 10 > 9) or (c == a - b and a % 10 < b % 10)
