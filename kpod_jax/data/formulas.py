"""Turns formulas into rationales, one step per operation.

Formulas may contain only numbers, + - * /, signs and parentheses. They are parsed, never passed to
eval.
"""

import ast
import decimal
import re
from fractions import Fraction

_LONGEST = 200
_PLAIN = str.maketrans("×÷−–·[]{}", "*/--*()()")
_OPERATIONS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_PLACES = 6


def rationale(formula: str, answer: str) -> str:
    """Returns the rationale for a formula such as "( 76.0 - 25.0 )" or "(9-6)*2=6".

    Args:
      formula: only the part before the first "=" is used. "20%" is 20 / 100.
      answer: a canonical number.

    Returns:
      The operations in evaluation order, such as "9 - 6 = 3. 3 * 2 = 6.". Values are exact: 10 / 3
      is "10/3". If the answer is the value rounded, a last sentence says so.

    Raises:
      ValueError: the formula contains more than numbers, or its value is not the answer.
    """
    steps: list[str] = []
    value = _value(_parse(formula), steps, formula)
    if not steps:
        steps.append(f"It is {_text(value)}.")
    if value != Fraction(answer):
        if not _rounds(value, answer):
            raise ValueError(
                f"has a formula, {formula!r}, equal to {_text(value)}; its answer is {answer}"
            )
        steps.append(f"{_text(value)} is about {answer}.")
    return " ".join(steps)


def _parse(formula: str) -> ast.expr:
    text = formula.translate(_PLAIN).partition("=")[0].strip()
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"(\d+(?:\.\d+)?)\s?%", r"(\1/100)", text)
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)
    if not re.fullmatch(rf"[\d.+\-*/() ]{{1,{_LONGEST}}}", text):
        raise ValueError(f"has a formula that is not purely numeric: {formula!r:.80}")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"has a formula that cannot be parsed: {formula!r:.80}") from error


def _value(node: ast.expr, steps: list[str], formula: str) -> Fraction:
    """Returns the value of a node, and appends a sentence per operation to `steps`."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return Fraction(str(number))  # Exactly 0.1, not the nearest double.
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            sign = -1 if isinstance(node.op, ast.USub) else 1
            return sign * _value(operand, steps, formula)
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div()):
            left = _value(node.left, steps, formula)
            right = _value(node.right, steps, formula)
            sign = _OPERATIONS[type(node.op)]
            if sign == "/" and right == 0:
                raise ValueError(f"has a formula that divides by zero: {formula!r:.80}")
            values = {
                "+": left + right,
                "-": left - right,
                "*": left * right,
                "/": left / (right or 1),
            }
            value = values[sign]
            steps.append(f"{_operand(left)} {sign} {_operand(right)} = {_text(value)}.")
            return value
    raise ValueError(f"has a formula that cannot be parsed: {formula!r:.80}")


def _rounds(value: Fraction, answer: str) -> bool:
    """Returns whether `answer` is `value`, rounded to the last digit of `answer`."""
    unit = Fraction(1, 10 ** len(answer.partition(".")[2]))
    return "/" not in answer and abs(value - Fraction(answer)) <= unit / 2


def _text(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    number = decimal.Decimal(value.numerator) / decimal.Decimal(value.denominator)
    rounded = round(number, _PLACES)
    return f"{rounded.normalize():f}" if Fraction(rounded) == value else str(value)


def _operand(value: Fraction) -> str:
    text = _text(value)
    return f"({text})" if value < 0 or "/" in text else text
