"""The words of the built-in task: names, things, and the operations that change a quantity."""

import dataclasses
from collections.abc import Callable

LARGEST = 40

NAMES = {
    "he": ("Tom", "Ben", "Omar", "Luis", "Ivan", "Paul", "Sam", "Karl"),
    "she": ("Anna", "Mia", "Rosa", "Lena", "Ines", "Ruth", "Kim", "Nora"),
}
HIS = {"he": "his", "she": "her"}
ITEMS = "pens cups books stamps apples cards shells coins balls eggs plums nuts keys rings".split()
BOXES = "boxes bags jars baskets".split()
OPENERS = ("First", "Then", "Now", "Next", "After that", "So", "Well", "Here", "Again")
ASIDES = (
    "as we can see",
    "as the story says",
    "to go on like this",
    "if we read it with care",
    "it is plain to say",
    "which is easy to see",
)
NUMBERED_ASIDES = (
    "as it says on page {}",
    "as line {} tells us",
    "just like problem {} before",
    "as the teacher of room {} said",
)
FILLER_STEPS = (
    "Let us read the story with care.",
    "It is a good idea to go on step by step.",
    "We can say that all went well so far.",
    "This is like problem {} in the book.",
    "We got to line {} of the story.",
)
DISTRACTORS = (
    "{Name} is {} years old.",
    "{Name} lives in house number {}.",
    "It is day {} of the year.",
)


@dataclasses.dataclass(frozen=True)
class Operation:
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

STARTS = (
    Operation(
        "{name} has {a} {box} with {b} {items} in each.",
        ("{name} has {eq} {items} to begin with", "all the {box} together hold {eq} {items}"),
        _TIMES,
        lambda a, b: a * b,
        3.0,
        (2, 9),
    ),
    Operation(
        "{name} buys {a} dozen {items}.",
        ("{name} buys {eq} {items}", "the shop gives {name} {eq} {items}"),
        (("{a}", "[dozen]", "or", "{c}"),),
        lambda a, _: a * 12,
        3.0,
    ),
    Operation(
        "{name} finds one of the {items} every day for {a} weeks.",
        ("it takes {eq} days to find as many {items}", "{name} goes on for {eq} days"),
        (("{a}", "[weeks]", "or", "{c}"),),
        lambda a, _: a * 7,
        3.0,
    ),
    Operation(
        "{name} has {a} red and {b} blue {items}.",
        ("{name} has {eq} {items} of both kinds", "we add both kinds up to get {eq} {items}"),
        _PLUS,
        lambda a, b: a + b,
        1.0,
        (2, 20),
        (2, 20),
    ),
)
MIDDLES = (
    Operation(
        "Then {he} buys {b} more {items}.",
        ("{he} buys some more to have {eq} {items}", "with the new ones there are {eq} {items}"),
        _PLUS,
        lambda a, b: a + b,
        1.0,
        (2, 20),
    ),
    Operation(
        "A friend brings {b} {items}.",
        ("the friend is kind and there are {eq} {items}", "with the gift {he} has {eq} {items}"),
        _PLUS,
        lambda a, b: a + b,
        1.0,
        (2, 20),
    ),
    Operation(
        "Then {he} gives away {b} {items}.",
        ("{he} gives some away and keeps {eq} {items}", "there are only {eq} {items} left"),
        _MINUS,
        lambda a, b: a - b,
        1.0,
        (2, 20),
    ),
    Operation(
        "On the way home {he} loses {b} {items}.",
        ("{he} is sad to have only {eq} {items}", "some get lost so {he} can keep {eq} {items}"),
        _MINUS,
        lambda a, b: a - b,
        1.0,
        (2, 20),
    ),
    Operation(
        "By now {his} sister has twice as many {items}.",
        ("{his} sister has {eq} {items}", "the sister got {eq} {items}"),
        (("[twice]", "{a}", "or", "{c}"),),
        lambda a, _: a * 2,
        2.0,
        question="How many {items} does the sister have in the end?",
    ),
    Operation(
        "But {his} brother has half as many {items}.",
        ("{his} brother has {eq} {items}", "the brother got {eq} {items}"),
        (("[half]", "of", "{a}", "or", "{c}"),),
        _half,
        2.0,
        question="How many {items} does the brother have in the end?",
    ),
)
ENDS = (
    Operation(
        "All the {items} are put into {b} {box}, as many in each.",
        ("each of the {box} can fit {eq} {items}", "we share them out to get {eq} {items} in each"),
        _OVER,
        _divide,
        3.0,
        (2, 9),
        question="How many {items} are in each of the {box}?",
    ),
    Operation(
        "All the {items} are sold for {b} dollars each.",
        ("they are sold for {eq} dollars", "all that money makes {eq} dollars"),
        _TIMES,
        lambda a, b: a * b,
        3.0,
        (2, 9),
        question="How many dollars are paid?",
    ),
)
ALL = STARTS + MIDDLES + ENDS
