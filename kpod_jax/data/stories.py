"""The vocabulary of the built-in task: names, items, and operations that change a quantity."""

import dataclasses

LARGEST = 24

NAMES = {
    "he": ("Tom", "Ben", "Omar", "Luis", "Ivan", "Paul", "Sam", "Karl"),
    "she": ("Anna", "Mia", "Rosa", "Lena", "Ines", "Ruth", "Kim", "Nora"),
}
HIS = {"he": "his", "she": "her"}
ITEMS = "pens cups books stamps apples cards shells coins balls eggs plums nuts keys rings".split()
BOXES = "boxes bags jars baskets".split()
DISTRACTORS = (
    "{Name} is {} years old.",
    "{Name} lives at number {} on the same street.",
    "It is day {} of the month.",
)

# What the rationale says around an equation. None of it reveals the next operation.
OPENERS = ("First", "Then", "Next", "Now", "So", "Here", "After that")
ASIDES = (
    "as anyone can tell",
    "from what the story says",
    "reading on with care",
    "looking at the story again",
    "keeping all of this in mind",
    "to answer the question",
)
NUMBERED_ASIDES = (
    "as line {} says",
    "just like in problem {}",
    "as we learned on page {}",
    "as in exercise {} of the book",
)
CLAUSES = ("we find that", "this means that", "it follows that", "we get that", "then clearly")
REMARKS = (
    "and we write that down",
    "which seems right",
    "just as we expected",
    "so we can move on from here",
    "which we keep for later",
)
FILLER_STEPS = (
    "Let us read the story once more.",
    "It helps to go slowly and check each part.",
    "So far everything is clear.",
    "This looks like problem {} in the book.",
    "We are now at line {} of the story.",
    "We can go on to the next part.",
)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One change of the quantity.

    Attributes:
      event: sentence of the question; a template with name, he, his, items, box, a and b.
      sign: +, -, * or /.
      operand: (low, high) of b; a single value where the wording implies it, as in "twice".
      earlier: whether b is the quantity before the last operation.
      start: (low, high) of a when the operation begins a story.
      unit: what is counted; empty: the items.
      question: the question when this is the last operation; empty: how many items.
    """

    event: str
    sign: str
    operand: tuple[int, int] = (0, 0)
    earlier: bool = False
    start: tuple[int, int] = (2, 9)
    unit: str = ""
    question: str = ""

    def apply(self, a: int, b: int) -> int | None:
        """Returns the result, or None if it is not an integer from 1 to LARGEST."""
        if self.sign == "/":
            c = a // b if b and a % b == 0 else 0
        else:
            c = {"+": a + b, "-": a - b, "*": a * b}[self.sign]
        return c if 1 <= c <= LARGEST else None


STARTS = (
    Operation("{name} has {a} {box} with {b} {items} in each.", "*", (2, 9)),
    Operation("{name} buys {a} dozen {items}.", "*", (12, 12)),
    Operation("{name} finds one of the {items} every day for {a} weeks.", "*", (7, 7)),
    Operation("{name} has {a} red and {b} blue {items}.", "+", (2, 12), start=(2, 12)),
)
MIDDLES = (
    Operation("Then {he} buys {b} more {items}.", "+", (2, 12)),
    Operation("A friend brings {b} {items}.", "+", (2, 12)),
    Operation("Then {he} gives away {b} {items}.", "-", (2, 12)),
    Operation("On the way home {he} loses {b} {items}.", "-", (2, 12)),
    Operation("A week later {he} has twice as many {items}.", "*", (2, 2)),
    Operation("Then half of the {items} break.", "/", (2, 2)),
)
ENDS = (
    Operation(
        "All the {items} are put into {b} {box}, the same number in each.",
        "/",
        (2, 9),
        question="How many {items} are in each of the {box}?",
    ),
    Operation(
        "All the {items} are sold for {b} dollars each.",
        "*",
        (2, 9),
        unit="dollars",
        question="How many dollars are paid?",
    ),
)
# Another person's quantity, then both combined: the last step needs two earlier results.
COMPARISONS = (
    Operation(
        "{his} sister has {b} more {items} than {name}.",
        "+",
        (2, 12),
        question="How many {items} does {his} sister have?",
    ),
    Operation(
        "{his} brother has {b} fewer {items} than {name}.",
        "-",
        (2, 12),
        question="How many {items} does {his} brother have?",
    ),
)
TOGETHER = Operation(
    "They put their {items} together.",
    "+",
    earlier=True,
    question="How many {items} do they have together?",
)
ALL = (*STARTS, *MIDDLES, *ENDS, *COMPARISONS, TOGETHER)
