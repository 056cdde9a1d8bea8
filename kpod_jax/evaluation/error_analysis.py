"""Classifies wrong generations by their equations, as a best effort without a model.

Equations such as "3 + 4 = 7", "3 plus 4 is 7" and "16 - 3 - 4 = $9" are parsed with regular
expressions and `fractions.Fraction`; no code is executed. Equations whose meaning is ambiguous,
such as those with "%", "half of 3 + 5" or variables, are ignored. Calculations in words ("twice 9,
or 18") are not detected.
"""

import collections
import itertools
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from kpod_jax.data import answers, numbers

# In the order of the checks, strongest evidence first. The first that applies is the class.
CLASSES = {
    "no answer": "no final answer was found",
    "arithmetic slip": "an equation is false",
    "wrong operator": "the operands of one of the teacher's operations with a different operator",
    "too few steps": "fewer operations than the teacher",
    "too many steps": "more operations than the teacher",
    "wrong operand or copy": "as many operations as the teacher, but different ones; or the same "
    "ones, but the answer is not the last result",
    "other": "none of these",
}

# Limits on expressions and numbers, so that the cost is linear in the length of any text.
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
    rf"(?:[0-9]{{1,9}} [0-9]{{1,9}}/[0-9]{{1,9}}(?![0-9])|{numbers.DECIMAL}))"
    r"|(?P<equals>=|\b(?:is|equals)\b)"
    r"|(?P<bracket>[()])"
    # The meaning of a number next to these is ambiguous.
    r"|(?P<unsure>%|\b(?i:percent|cents?)\b)"
    r"|(?P<word>[^\W\d_]+)"
    r"|(?P<line>\n)|(?P<stop>\S)",
)
# Characters that may directly precede the first number of an equation, besides words.
_CLEAN = frozenset(".,;:!?\"'“”‘’([{—–=>|")
# "half of 3 + 5 = 4" says nothing about 3 + 5, nor does "2 and 1/4 + 1 = 3.25" about 1/4 + 1.
_SCALED = re.compile(
    r"(?:\b(?:twice|thrice|double|triple|half)|(?:\b(?:half|(?:third|quarter|fourth|fifth|sixth"
    r"|eighth|tenth)s?)|[0-9%])\s{1,3}of|[0-9]\s{1,3}and)(?:\s{1,3}the)?\s{0,3}\Z",
    re.IGNORECASE,
)


class Token(NamedTuple):
    """A token of a text: its kind (the name of the regex group), its text and its span."""

    kind: str
    text: str
    start: int
    end: int


class Operation(NamedTuple):
    """A binary operation; for + and *, `left` is the smaller operand."""

    left: Fraction
    operator: str
    right: Fraction


class Equation(NamedTuple):
    """A calculation with its result.

    Attributes:
      operations: operations of the left side, in evaluation order; "16 - 3 - 4" has two.
      result: the result as written.
      holds: whether the result is correct. A decimal may be rounded or truncated at its last digit.
    """

    operations: tuple[Operation, ...]
    result: Fraction
    holds: bool


def classify(
    prediction: str, extracted: str | None, rationale: str, answer_kind: str = "number"
) -> str:
    """Returns the class of a wrong generation, a key of CLASSES.

    Args:
      prediction: the generation.
      extracted: its final answer from `answers.extract_answer`; None if there is none.
      rationale: the teacher's rationale; if it has no equations, operations are not compared.
      answer_kind: kind of answer, from `answers.KINDS`.
    """
    if extracted is None:
        return "no answer"
    predicted_equations = equations(prediction)
    if not all(equation.holds for equation in predicted_equations):
        return "arithmetic slip"
    predicted, gold = (
        collections.Counter(operation for equation in side for operation in equation.operations)
        for side in (predicted_equations, equations(rationale))
    )
    if not gold:
        return "other"
    operators = collections.defaultdict(set)
    for operation in gold:
        operators[frozenset((operation.left, operation.right))].add(operation.operator)
    for operation in predicted:
        expected = operators.get(frozenset((operation.left, operation.right)))
        if expected and operation.operator not in expected:
            return "wrong operator"
    if predicted.total() != gold.total():
        return "too few steps" if predicted.total() < gold.total() else "too many steps"
    last = str(predicted_equations[-1].result)
    copied = answer_kind != "number" or answers.answers_equal(extracted, last)
    return "other" if predicted == gold and copied else "wrong operand or copy"


def equations(text: str) -> list[Equation]:
    """Extracts the equations whose left side is a calculation, in order.

    "3 + 4 = 7 + 2 = 9" is read as intended, as 3 + 4 = 7 and 7 + 2 = 9.
    """
    text = _ANNOTATION.sub("", text.replace("\u2212", "-").replace("**", " "))
    text = _BULLET.sub("", text)
    result = []
    for sides in _chains(text):
        for left, right in itertools.pairwise(sides):
            equation = _parse_equation(left, right)
            if equation is not None:
                result.append(equation)
    return result


def _chains(text: str) -> Iterator[list[Sequence[Token]]]:
    """Yields runs of expressions separated by equals signs; an expression to ignore is empty."""
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
        if after < len(tokens) and _continues(tokens[after], run[-1]):
            sides[-1] = []
        yield sides


def _is_unit(tokens: Sequence[Token], index: int) -> bool:
    """Returns whether a word is the unit of a number, as in "5 red pens + 3 pens = 8 pens"."""
    kinds = [token.kind for token in tokens[max(0, index - 2) : index + 3]]
    center = min(index, 2)
    before, after = kinds[:center][::-1], kinds[center + 1 :]
    words = 1
    for side in (before, after):
        if side[:1] == ["word"]:
            words += 1
            del side[0]
    return (
        kinds[center] == "word"
        and len(tokens[index].text) > 1
        and words < 3
        and before[:1] == ["number"]
        and after[:1] in (["operator"], ["equals"])
    )


def _begins(text: str, before: Token, first: Token) -> bool:
    """Returns whether an expression begins at `first` rather than continuing a longer one."""
    joined = before.end == first.start and before.text in ".,:"  # As in 16,0000 and 7:15.
    if before.kind == "stop" and (joined or before.text not in _CLEAN):
        return False
    if before.kind == "word" and first.kind == "operator":
        return False
    return not _SCALED.search(text, max(0, first.start - 40), first.start)


def _continues(after: Token, last: Token) -> bool:
    """Returns whether the last number is part of a longer term, such as 2y, 2^3 or 8:07."""
    is_sign = after.text in "^:" or (len(after.text) == 1 and after.text.isalpha())
    return after.start == last.end and is_sign


def _parse_equation(left: Sequence[Token], right: Sequence[Token]) -> Equation | None:
    """Parses two sides; None if either is not an expression, or the left is not a calculation."""
    if max(len(left), len(right)) > _MAX_TOKENS:
        return None
    while right and right[-1].text in ("-", ")", "(") and _parse(right) is None:
        right = right[:-1]  # A dash, or the end of a parenthetical remark.
    if left and left[0].text == "(" and _parse(left) is None:
        left = left[1:]
    left_parsed, right_parsed = _parse(left), _parse(right)
    if left_parsed is None or right_parsed is None or not left_parsed[1]:
        return None
    value, operations = left_parsed
    result, right_operations = right_parsed
    if not right_operations:
        places = len(right[-1].text.partition(".")[2])
        close = places > 0 and abs(value - result) < Fraction(1, 10**places)
        return Equation(operations, result, value == result or close)
    if value == result:
        return Equation(operations, result, True)
    # "3 + 4 = 7 + 2": the first number may be the result.
    first = _parse_equation(left, right[: 1 + (right[0].text == "-")])
    return first if first and first.holds else Equation(operations, result, False)


def _parse(tokens: Sequence[Token]) -> tuple[Fraction, tuple[Operation, ...]] | None:
    """Returns the value of an expression and its operations; None if it is not one."""
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
    """Parses a number, possibly with a sign directly before it, or a parenthesized expression."""
    token = queue.popleft()
    if token.text == "-" and queue[0].kind == "number" and queue[0].start == token.end:
        return -_atom(queue, operations)
    if token.text == "(":
        value = _sum(queue, operations)
        if queue.popleft().text != ")":
            raise ValueError("unclosed parenthesis")
        return value
    if token.kind != "number" or sum(map(str.isdigit, token.text)) > _MAX_DIGITS:
        raise ValueError("expected a number")
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
