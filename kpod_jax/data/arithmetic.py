"""The built-in task: multi-step word problems whose keypoints and hard steps are known.

A problem is a story about one quantity that two or three operations change. The rationale explains
one operation a step, in running text: the numbers, the operator and words that do arithmetic
("twice", "dozen") decide the answer; the rest is filler, and so are the numbers that only say
where something is written ("on page 12"). All quantities are whole numbers from 1 to 40.

Everything is a function of (split, seed). A question belongs to the split that its hash names, so
splits share no question whatever the seeds and the sizes.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from kpod_jax.data.records import Record

_T = TypeVar("_T")
# Sixteenths of all questions. "fresh" is for what must not know the training answers, such as the
# pre-training of a student and the answerer of the token weighting.
_SPLITS = {"train": range(6), "validation": range(6, 8), "test": range(8, 10)}
_SPLITS["fresh"] = range(10, 16)
LARGEST = 40

NAMES = {
    "he": ("Tom", "Ben", "Omar", "Luis", "Ivan", "Paul", "Sam", "Karl"),
    "she": ("Anna", "Mia", "Rosa", "Lena", "Ines", "Ruth", "Kim", "Nora"),
}
_HIS = {"he": "his", "she": "her"}
ITEMS = "pens cups books stamps apples cards shells coins balls eggs plums nuts keys rings".split()
_BOXES = "boxes bags jars baskets".split()
_OPENERS = ("First", "Then", "Now", "Next", "After that", "So", "Well", "Here", "Again")
_ASIDES = (
    "as we can see",
    "as the story says",
    "to go on like this",
    "if we read it with care",
    "it is plain to say",
    "which is easy to see",
)
_NUMBERED_ASIDES = (
    "as it says on page {}",
    "as line {} tells us",
    "just like problem {} before",
    "as the teacher of room {} said",
)
_FILLER_STEPS = (
    "Let us read the story with care.",
    "It is a good idea to go on step by step.",
    "We can say that all went well so far.",
    "This is like problem {} in the book.",
    "We got to line {} of the story.",
)
_DISTRACTORS = (
    "{Name} is {} years old.",
    "{Name} lives in house number {}.",
    "It is day {} of the year.",
)


@dataclasses.dataclass(frozen=True)
class _Operation:
    """One change of the quantity.

    Attributes:
      event: the sentence of the question; formatted with name, he, his, items, box, a and b.
      clauses: ways to explain it; formatted likewise, with {eq} for one of the equations.
      equations: words and symbols around {a}, {b} and {c}; operators stand in brackets.
      apply: (a, b) -> c, or None where it does not come out as a whole number.
      hardness: how hard the result is to find; a carry adds 1.
      operand: (low, high) of b, or None where there is no b.
      start: (low, high) of a where the operation begins a story.
      question: what is asked when this is the last to change whose quantity it is.
    """

    event: str
    clauses: tuple[str, ...]
    equations: tuple[tuple[str, ...], ...]
    apply: Callable[[int, int], int | None]
    hardness: float
    operand: tuple[int, int] | None = None
    start: tuple[int, int] = (2, 9)
    question: str | None = None


def _half(a: int, _: int) -> int | None:
    return a // 2 if a % 2 == 0 else None


def _divide(a: int, b: int) -> int | None:
    return a // b if a % b == 0 else None


# In equations, pieces in brackets are operators: keypoints, as the numbers are.
_PLUS = (("{a}", "[+]", "{b}", "=", "{c}"), ("{a}", "[plus]", "{b}", "is", "{c}"))
_MINUS = (("{a}", "[-]", "{b}", "=", "{c}"), ("{a}", "[minus]", "{b}", "is", "{c}"))
_TIMES = (("{a}", "[*]", "{b}", "=", "{c}"), ("{a}", "[times]", "{b}", "is", "{c}"))
_OVER = (("{a}", "[/]", "{b}", "=", "{c}"), ("{a}", "[over]", "{b}", "is", "{c}"))

_STARTS = (
    _Operation(
        "{name} has {a} {box} with {b} {items} in each.",
        ("{name} has {eq} {items} to begin with", "all the {box} together hold {eq} {items}"),
        _TIMES,
        lambda a, b: a * b,
        3.0,
        (2, 9),
    ),
    _Operation(
        "{name} buys {a} dozen {items}.",
        ("{name} buys {eq} {items}", "the shop gives {name} {eq} {items}"),
        (("{a}", "[dozen]", "or", "{c}"),),
        lambda a, _: a * 12,
        3.0,
    ),
    _Operation(
        "{name} finds one of the {items} every day for {a} weeks.",
        ("it takes {eq} days to find as many {items}", "{name} goes on for {eq} days"),
        (("{a}", "[weeks]", "or", "{c}"),),
        lambda a, _: a * 7,
        3.0,
    ),
    _Operation(
        "{name} has {a} red and {b} blue {items}.",
        ("{name} has {eq} {items} of both kinds", "we add both kinds up to get {eq} {items}"),
        _PLUS,
        lambda a, b: a + b,
        1.0,
        (2, 20),
        (2, 20),
    ),
)
_MIDDLES = (
    _Operation(
        "Then {he} buys {b} more {items}.",
        ("{he} buys some more to have {eq} {items}", "with the new ones there are {eq} {items}"),
        _PLUS,
        lambda a, b: a + b,
        1.0,
        (2, 20),
    ),
    _Operation(
        "A friend brings {b} {items}.",
        ("the friend is kind and there are {eq} {items}", "with the gift {he} has {eq} {items}"),
        _PLUS,
        lambda a, b: a + b,
        1.0,
        (2, 20),
    ),
    _Operation(
        "Then {he} gives away {b} {items}.",
        ("{he} gives some away and keeps {eq} {items}", "there are only {eq} {items} left"),
        _MINUS,
        lambda a, b: a - b,
        1.0,
        (2, 20),
    ),
    _Operation(
        "On the way home {he} loses {b} {items}.",
        ("{he} is sad to have only {eq} {items}", "some get lost so {he} can keep {eq} {items}"),
        _MINUS,
        lambda a, b: a - b,
        1.0,
        (2, 20),
    ),
    _Operation(
        "By now {his} sister has twice as many {items}.",
        ("{his} sister has {eq} {items}", "the sister got {eq} {items}"),
        (("[twice]", "{a}", "or", "{c}"),),
        lambda a, _: a * 2,
        2.0,
        question="How many {items} does the sister have in the end?",
    ),
    _Operation(
        "But {his} brother has half as many {items}.",
        ("{his} brother has {eq} {items}", "the brother got {eq} {items}"),
        (("[half]", "of", "{a}", "or", "{c}"),),
        _half,
        2.0,
        question="How many {items} does the brother have in the end?",
    ),
)
_ENDS = (
    _Operation(
        "All the {items} are put into {b} {box}, as many in each.",
        ("each of the {box} can fit {eq} {items}", "we share them out to get {eq} {items} in each"),
        _OVER,
        _divide,
        3.0,
        (2, 9),
        question="How many {items} are in each of the {box}?",
    ),
    _Operation(
        "All the {items} are sold for {b} dollars each.",
        ("they are sold for {eq} dollars", "all that money makes {eq} dollars"),
        _TIMES,
        lambda a, b: a * b,
        3.0,
        (2, 9),
        question="How many dollars are paid?",
    ),
)


class _Text:
    """Text that remembers which of its characters are keypoints."""

    def __init__(self) -> None:
        self.text = ""
        self.keypoints: list[tuple[int, int]] = []

    def add(self, piece: str, *, key: bool = False) -> None:
        if key:
            self.keypoints.append((len(self.text), len(self.text) + len(piece)))
        self.text += piece


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


class Equation(NamedTuple):
    """A single operation, as the rationales write it, cut before its result."""

    before: str
    result: str


def equations() -> list[Equation]:
    """Every operation that rationales can hold, in each way of writing it."""
    result = []
    for operation in dict.fromkeys((o.apply, o.equations) for o in _STARTS + _MIDDLES + _ENDS):
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
        "his": _HIS[he],
        "name": _pick(rng, NAMES[he]),
        "items": _pick(rng, ITEMS),
        "box": _pick(rng, _BOXES),
    }
    operations = [_pick(rng, _STARTS), *(_pick(rng, _MIDDLES) for _ in range(count - 1))]
    if count > 1 and rng.random() < 0.35:
        operations[-1] = _pick(rng, _ENDS)

    events, steps, keypoints, hardness = [], [], [], []
    asked, end = "How many {items} does {name} have?", 0
    quantity = int(rng.integers(operations[0].start[0], operations[0].start[1] + 1))
    for operation in operations:
        if operation.operand is None:
            operand = 0
        else:
            operand = int(rng.integers(operation.operand[0], operation.operand[1] + 1))
        result = operation.apply(quantity, operand)
        if result is None or not 1 <= result <= LARGEST:
            return None
        if rng.random() < 0.15:
            steps.append(_pick(rng, _FILLER_STEPS).format(int(rng.integers(1, LARGEST + 1))) + " ")
            hardness.append(0.0)
            end += len(steps[-1])
        numbers = {"a": quantity, "b": operand, "c": result}
        events.append(operation.event.format(**words, **numbers))
        step = _explain(rng, operation, words, numbers)
        steps.append(step.text + " ")
        keypoints += [(end + start, end + stop) for start, stop in step.keypoints]
        end += len(steps[-1])
        hardness.append(operation.hardness + _carries(quantity, operand, result))
        asked = operation.question or asked
        quantity = result
    if rng.random() < 0.5:
        place = int(rng.integers(len(events) + 1))
        text = _pick(rng, _DISTRACTORS)
        events.insert(place, text.format(int(rng.integers(2, LARGEST + 1)), Name=words["name"]))
    return Record(
        id="",
        question=" ".join([*events, asked.format(**words)]),
        steps=(*steps[:-1], steps[-1].rstrip()),
        answer=str(quantity),
        keypoints=tuple(keypoints),
        hardness=tuple(hardness),
    )


def _carries(a: int, b: int, c: int) -> bool:
    """Whether a + b = c carries, or a - b = c borrows."""
    return (c == a + b and a % 10 + b % 10 > 9) or (c == a - b and a % 10 < b % 10)


def _explain(
    rng: np.random.Generator, operation: _Operation, words: dict, numbers: dict[str, int]
) -> _Text:
    """One step of the rationale: an opener, perhaps an aside, a clause with the equation in it."""
    text = _Text()
    text.add(_pick(rng, _OPENERS) + ", ")
    chance = rng.random()
    if chance < 0.25:
        text.add(_pick(rng, _ASIDES) + ", ")
    elif chance < 0.5:
        text.add(_pick(rng, _NUMBERED_ASIDES).format(int(rng.integers(1, LARGEST + 1))) + ", ")
    clause = _pick(rng, operation.clauses)
    before, after = clause.split("{eq}")
    text.add(before.format(**words))
    for place, piece in enumerate(_pick(rng, operation.equations)):
        if place:
            text.add(" ")
        key = piece[0] in "{["
        text.add(piece.strip("[]").format(**numbers), key=key)
    text.add(after.format(**words) + ".")
    return text
