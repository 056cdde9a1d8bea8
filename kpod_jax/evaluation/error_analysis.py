"""Why a generation is wrong, as far as its equations show: a best effort without a model.

Equations such as "3 + 4 = 7", "3 plus 4 is 7" and "16 - 3 - 4 = $9" are read with regular
expressions and `fractions.Fraction` alone; nothing is evaluated as a program. Where it is not
certain what is meant, as with "%", "half of 3 + 5" and variables, an equation is not judged. What
is calculated in words ("twice 9, or 18") is not seen.
"""

import collections
import itertools
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from kpod_jax.data import answers

# In the order in which they are looked for: stronger evidence comes first. The first that applies
# is the class.
CLASSES = {
    "no answer": "no final answer is found",
    "arithmetic slip": "an equation is false",
    "wrong operator": "the operands of one of the teacher's operations, with another operator",
    "too few steps": "fewer operations than the teacher has",
    "too many steps": "more operations than the teacher has",
    "wrong operand or copy": "as many operations, but not the same; or the same, and the answer is "
    "not the last result",
    "other": "none of these is seen",
}

# Longer expressions and numbers are not read, so that no text costs more than a pass over it.
_MAX_TOKENS = 32
_MAX_DIGITS = 40
_OPERATORS = {
    "+": "+", "plus": "+", "-": "-", "minus": "-", "*": "*", "x": "*", "×": "*", "times": "*",
    "multiplied by": "*", "/": "/", "÷": "/", "over": "/", "divided by": "/",
}  # fmt: skip
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
# "1. ", "2) ", "- " and "* " at the start of a line.
_BULLET = re.compile(r"^[ \t]*(?:[0-9]{1,2}[.)]|[-*•])[ \t]+", re.MULTILINE)
_TOKEN = re.compile(
    r"(?P<operator>[-+*/×÷]|(?<![^\W\d_])[xX](?=\s{0,3}[$£€¥(]{0,2}\.?[0-9])"
    r"|\\?\b(?i:plus|minus|times|over|(?:multiplied|divided)\s{1,3}by)\b)"
    r"|(?P<number>\\?[$£€¥]?"
    rf"(?:[0-9]{{1,9}} [0-9]{{1,9}}/[0-9]{{1,9}}(?![0-9])|{answers.DECIMAL}))"
    r"|(?P<equals>=|\b(?:is|equals)\b)"
    r"|(?P<bracket>[()])"
    # Of these it is not certain what their numbers stand for.
    r"|(?P<unsure>%|\b(?i:percent|cents?)\b)"
    r"|(?P<word>[^\W\d_]+)"
    r"|(?P<line>\n)|(?P<stop>\S)",
)
# What may stand right before the first number of an equation, besides words.
_CLEAN = frozenset(".,;:!?\"'“”‘’([{—–=>|")
# "half of 3 + 5 = 4" is no statement about 3 + 5, nor "2 and 1/4 + 1 = 3.25" about 1/4 + 1.
_SCALED = re.compile(
    r"(?:\b(?:twice|thrice|double|triple|half)|(?:\b(?:half|(?:third|quarter|fourth|fifth|sixth"
    r"|eighth|tenth)s?)|[0-9%])\s{1,3}of|[0-9]\s{1,3}and)(?:\s{1,3}the)?\s{0,3}\Z",
    re.IGNORECASE,
)


class Token(NamedTuple):
    """A piece of a text: the name of the pattern's group, what is written, and where."""

    kind: str
    text: str
    start: int
    end: int


class Operation(NamedTuple):
    """One binary operation; of + and * the smaller operand is the left one."""

    left: Fraction
    operator: str
    right: Fraction


class Equation(NamedTuple):
    """A calculation with its result.

    Attributes:
      operations: of the left side, in the order of calculation; "16 - 3 - 4" is two.
      result: as it is written.
      holds: whether that is right. A decimal may be rounded or cut off where it ends.
    """

    operations: tuple[Operation, ...]
    result: Fraction
    holds: bool


def classify(
    prediction: str, extracted: str | None, rationale: str, answer_kind: str = "number"
) -> str:
    """The class of a wrong generation, a name of CLASSES.

    Args:
      prediction: the generation.
      extracted: its final answer, as `answers.extract_answer` gives it; None where there is none.
      rationale: the teacher's; without equations in it, operations are not compared.
      answer_kind: of `answers.KINDS`.
    """
    if extracted is None:
        return "no answer"
    found = equations(prediction)
    if not all(equation.holds for equation in found):
        return "arithmetic slip"
    own, gold = (
        collections.Counter(operation for equation in side for operation in equation.operations)
        for side in (found, equations(rationale))
    )
    if not gold:
        return "other"
    operators = collections.defaultdict(set)
    for operation in gold:
        operators[frozenset((operation.left, operation.right))].add(operation.operator)
    for operation in own:
        known = operators.get(frozenset((operation.left, operation.right)))
        if known and operation.operator not in known:
            return "wrong operator"
    if own.total() != gold.total():
        return "too few steps" if own.total() < gold.total() else "too many steps"
    last = str(found[-1].result)
    copied = answer_kind != "number" or answers.answers_equal(extracted, last)
    return "other" if own == gold and copied else "wrong operand or copy"


def equations(text: str) -> list[Equation]:
    """The equations of a text whose left side is a calculation, in their order.

    "3 + 4 = 7 + 2 = 9" is read as it is meant, as 3 + 4 = 7 and 7 + 2 = 9.
    """
    text = _ANNOTATION.sub("", text.replace("\u2212", "-").replace("**", " "))
    text = _BULLET.sub("", text)
    found = []
    for sides in _chains(text):
        for left, right in itertools.pairwise(sides):
            equation = _equation(left, right)
            if equation is not None:
                found.append(equation)
    return found


def _chains(text: str) -> Iterator[list[Sequence[Token]]]:
    """Expressions that stand in a row with equals signs between them; empty where not judged."""
    tokens = [Token(str(m.lastgroup), m[0], *m.span()) for m in _TOKEN.finditer(text)]
    breaks = [i for i, token in enumerate(tokens) if token.kind in ("word", "stop", "line")]
    breaks = [i for i in breaks if not _is_unit(tokens, i)]
    for before, after in itertools.pairwise([-1, *breaks, len(tokens)]):
        run = [token for token in tokens[before + 1 : after] if token.kind != "word"]
        sides: list[Sequence[Token]] = [
            list(side) for equals, side in itertools.groupby(run, lambda t: t.kind == "equals")
            if not equals
        ]  # fmt: skip
        if len(sides) < 2:
            continue
        if before >= 0 and not _begins(text, tokens[before], run[0]):
            sides[0] = []
        if after < len(tokens) and _goes_on(tokens[after], run[-1]):
            sides[-1] = []
        yield sides


def _is_unit(tokens: Sequence[Token], place: int) -> bool:
    """Whether a word is a number's unit in an equation, as in "5 red pens + 3 pens = 8 pens"."""
    kinds = [token.kind for token in tokens[max(0, place - 2) : place + 3]]
    at = min(place, 2)
    before, after = kinds[:at][::-1], kinds[at + 1 :]
    words = 1
    for side in (before, after):
        if side[:1] == ["word"]:
            words += 1
            del side[0]
    return (
        kinds[at] == "word"
        and len(tokens[place].text) > 1
        and words < 3
        and before[:1] == ["number"]
        and after[:1] in (["operator"], ["equals"])
    )


def _begins(text: str, before: Token, first: Token) -> bool:
    """Whether an expression begins with `first` and is not the rest of a longer one."""
    glued = before.end == first.start and before.text in ".,:"  # As in 16,0000 and 7:15.
    if before.kind == "stop" and (glued or before.text not in _CLEAN):
        return False
    if before.kind == "word" and first.kind == "operator":
        return False
    return not _SCALED.search(text, max(0, first.start - 40), first.start)


def _goes_on(after: Token, last: Token) -> bool:
    """Whether the last number is part of what is no number, such as 2y, 2^3 and 8:07."""
    is_sign = after.text in "^:" or (len(after.text) == 1 and after.text.isalpha())
    return after.start == last.end and is_sign


def _equation(left: Sequence[Token], right: Sequence[Token]) -> Equation | None:
    """What two sides say; None where either cannot be read, or nothing is calculated."""
    if max(len(left), len(right)) > _MAX_TOKENS:
        return None
    while right and right[-1].text in ("-", ")", "(") and _read(right) is None:
        right = right[:-1]  # A dash, or the end of a remark in parentheses.
    if left and left[0].text == "(" and _read(left) is None:
        left = left[1:]
    calculated, given = _read(left), _read(right)
    if calculated is None or given is None or not calculated[1]:
        return None
    value, operations = calculated
    result, whole = given[0], bool(given[1])
    if not whole:
        places = len(right[-1].text.partition(".")[2])
        near = places > 0 and abs(value - result) < Fraction(1, 10**places)
        return Equation(operations, result, value == result or near)
    if value == result:
        return Equation(operations, result, True)
    # "3 + 4 = 7 + 2": the first number may be the result.
    first = _equation(left, right[: 1 + (right[0].text == "-")])
    return first if first and first.holds else Equation(operations, result, False)


def _read(tokens: Sequence[Token]) -> tuple[Fraction, tuple[Operation, ...]] | None:
    """The value of an expression and its operations; None where it is not one."""
    queue, operations = collections.deque(tokens), []
    try:
        value = _sum(queue, operations)
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return None if queue else (value, tuple(operations))


def _sum(queue: collections.deque[Token], operations: list[Operation]) -> Fraction:
    value = _product(queue, operations)
    while queue and _operator(queue[0]) in ("+", "-"):
        operator = _operator(queue.popleft())
        value = _apply(value, operator, _product(queue, operations), operations)
    return value


def _product(queue: collections.deque[Token], operations: list[Operation]) -> Fraction:
    value = _atom(queue, operations)
    while queue and _operator(queue[0]) in ("*", "/"):
        operator = _operator(queue.popleft())
        value = _apply(value, operator, _atom(queue, operations), operations)
    return value


def _atom(queue: collections.deque[Token], operations: list[Operation]) -> Fraction:
    """A number, one with a sign right before it, or an expression in parentheses."""
    token = queue.popleft()
    if token.text == "-" and queue[0].kind == "number" and queue[0].start == token.end:
        return -_atom(queue, operations)
    if token.text == "(":
        value = _sum(queue, operations)
        if queue.popleft().text != ")":
            raise ValueError("a parenthesis is not closed")
        return value
    if token.kind != "number" or sum(map(str.isdigit, token.text)) > _MAX_DIGITS:
        raise ValueError("no number")
    whole, _, part = token.text.lstrip("\\$£€¥").replace(",", "").partition(" ")
    return Fraction(whole) + (Fraction(part) if part else 0)


def _operator(token: Token) -> str | None:
    if token.kind != "operator":
        return None
    return _OPERATORS[" ".join(token.text.lstrip("\\").lower().split())]


def _apply(
    left: Fraction, operator: str | None, right: Fraction, operations: list[Operation]
) -> Fraction:
    if operator == "+":
        value = left + right
    elif operator == "-":
        value = left - right
    elif operator == "*":
        value = left * right
    else:
        value = left / right
    if operator in ("+", "*"):
        left, right = sorted((left, right))
    operations.append(Operation(left, str(operator), right))
    return value
