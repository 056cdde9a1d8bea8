r"""Reads numbers as people, teachers and students write them: "$1.2 million", "2 1/2", `\frac34`.

Parsing uses only regular expressions and `fractions.Fraction`: nothing is evaluated, and numbers
are limited in length, so parsing takes time linear in the length of the text.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from kpod_jax.data import numerals
from kpod_jax.data.announcements import Region, plain

# Longer numbers do not answer word problems; the limit keeps Fraction arithmetic cheap.
_MAX_DIGITS = 40
_MAX_EXPONENT = 30
_MAX_TEXT = 200


# The number of thousands groups is limited: otherwise a failed match is retried from each group.
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,14}+(?![0-9])|[0-9]++)"
DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]++)?|(?<![\w])\.[0-9]++)"
_WORDS = {
    "dozen": 12,
    "hundred": 10**2,
    "thousand": 10**3,
    "lakh": 10**5,
    "million": 10**6,
    "crore": 10**7,
    "billion": 10**9,
    "trillion": 10**12,
}
_SUFFIXES = {"k": 10**3, "K": 10**3, "M": 10**6, "mn": 10**6, "B": 10**9, "bn": 10**9}
_SCALES = _WORDS | _SUFFIXES

_CURRENCY = r"\\?[$\u00a3\u20ac\u00a5\u20b9]"
# A minus is a sign only if no operand precedes it: "5-3" contains 5 and 3.
_SIGN = (
    rf"(?:(?<![\w.)\]}}])(?P<sign>-|\bnegative )(?:{_CURRENCY} ?)?"
    rf"|(?:{_CURRENCY} ?)?(?P<inner>(?<=[$\u00a3\u20ac\u00a5\u20b9])-)?)"
)
# Digits of a name (x2), an index (x_{2}) or a unit's exponent (m^2, m^{-2}, m**2) are no number.
_START = r"(?<![A-Za-z_0-9^])(?<!\^[-{(])(?<!\^[{(]-)(?<!_\{)(?<![A-Za-z]\*\*)"
_FORMS = ("braced", "bracketed", "bare")
_POWER = (
    r"\^ ?(?:\{ ?(?P<{0}braced>[+-]?[0-9]++) ?\}|\((?P<{0}bracketed>[+-]?[0-9]++)\)"
    r"|(?P<{0}bare>[+-]?[0-9]++))"
)
_SYMBOL = r" ?(?:\*|\\cdot|\\times)? ?(?:\\?pi\b|\u03c0|\\?sqrt\b|\u221a|\\[dtc]?frac\b)"
_NUMBER = re.compile(
    # Not a number by itself, but not to be taken for the numbers in it.
    r"(?P<opaque>\\[dtc]?frac ?\{[^{}]{0,60}\} ?\{[^{}]{0,60}\}|\\[dtc]?frac\b"
    r"|\\?\bsqrt ?[{(]?[0-9]*+|\\sqrt ?\{?[0-9]*+|\u221a ?[({]?[0-9]*+)"
    rf"|{_SIGN}{_START}(?:"
    r"(?P<whole>[0-9]++) (?:and |& )?(?P<part>[0-9]++)/(?P<parts>[0-9]++)(?![0-9/])"
    r"|(?P<hours>[0-9]{1,2}):(?P<minutes>[0-5][0-9])(?::(?P<seconds>[0-5][0-9]))?(?![0-9:])"
    rf"|(?P<top>{DECIMAL})(?:"
    r"[eE](?P<exponent>[+-]?[0-9]++)(?![A-Za-z])"
    r"| ?(?:x|\*|\\times|\\cdot|\u00d7|\u00b7) ?10 ?(?:\*\*(?P<ten>[+-]?[0-9]++)|"
    + _POWER.replace("{0}", "ten_")
    + r")|"
    + _POWER.replace("{0}", "power_")
    + rf"| ?/ ?(?P<bottom>{DECIMAL})(?! ?/))?"
    r")"
    rf"(?:[ -]?(?:an? )?(?P<scale>(?i:\b(?:{'|'.join(_WORDS)})s?\b ?){{1,2}}+)"
    rf"|(?P<suffix>{'|'.join(_SUFFIXES)})(?![\w&]))?"
    rf"(?P<symbol>{_SYMBOL})?"
)
# In the clause of a number: "20% of 50 = 10".
_EQUALS = re.compile(r"[^=,;:(!?]{0,60}=")
# A calculation goes on: "= 7", "+ 4", "apples x $3".
_OPERATOR = re.compile(
    r"[^0-9=+*/\u00d7\u00f7.,;:!?()-]{0,30}?\s?"
    r"(?:=|(?:[-+\u00d7\u00f7\u00b7/]|\*(?!\*)|\b(?:x|times|plus|minus|divided by|multiplied by)\b"
    r"|\\times|\\cdot|\\div)\s?[$\u00a3\u20ac\u00a5\\({]{0,3}\s?[0-9])"
)
_TURNED_DOWN = re.compile(
    r"(?:\bnot|n't|\bnever|\brather than|\binstead of)\s{1,3}"
    r"(?:(?:the|an?|equal to) ){0,2}\W{0,3}\Z",
    re.IGNORECASE,
)
# Between the numbers of a list or range. Units may stand in it: "3 dollars and 50 cents".
_LISTED = re.compile(
    r"(?:[ -]?[A-Za-z%\u00b0]+)?\s?(?:,|,? (?:and|or|to)\b|-|:)\s?(?:[$\u00a3\u20ac]|\\\$)?"
    r"| (?:hours?|hrs?|h|minutes?|mins?|feet|ft|pounds?|lbs?|years?|weeks?|days?) ",
    re.IGNORECASE,
)
# "apples", "km/h", "m^2"; words cannot be split in several ways.
_UNIT_WORD = r"[^\W\d_]++(?:[./\u00b7'-][^\W\d_]*+)*+(?: ?(?:\^|\*\*)\{?-?[0-9]\}?|[0-9](?!\w))?"
_UNIT = (
    r"[ -]?(?:[%\u00b0\u2030\u00a2'\"]|[$\u00a3\u20ac\u00a5\u20b9])?"
    rf"(?: {{0,3}}/? ?\(?{_UNIT_WORD}\)?,?(?: {{1,3}}/? ?\(?{_UNIT_WORD}\)?,?){{0,4}})?"
)
_GOLD = re.compile(
    rf"\+?(?:[A-Z]{{1,3}}(?=\$)|(?:USD|EUR|GBP|INR|Rs\.?) ?)?(?P<number>{_NUMBER.pattern})"
    rf"(?P<unit>{_UNIT})\s?\.?"
)
_TAIL = re.compile(r"(?:[ -]?[A-Za-z%\u00b0'.]++){0,3}[\W_]*")
_BETWEEN = re.compile(r"\bbetween\s{1,3}\W{0,3}\Z", re.IGNORECASE)
_AND = re.compile(r"(?: [a-z%]{1,20})?\s{1,3}and\s{1,3}\W{0,3}", re.IGNORECASE)
_EXPONENTS = ("exponent", "ten", *(f"{a}_{b}" for a in ("ten", "power") for b in _FORMS))
_SENTENCE_END = re.compile(r"[.!?](?:\s|\Z)|\n")


@dataclasses.dataclass(frozen=True)
class Number:
    """A number.

    Attributes:
      text: its canonical text.
      scaled: its scale word in the singular, "dozen" or "k", or "".
      unscaled: its canonical text without the scale word, as "3" for "3 dozen".
    """

    text: str
    scaled: str = ""
    unscaled: str = ""


def read(region: Region) -> Number | None:
    """Returns the number that is the answer in a region of text, or None if no single one is.

    Docs: "Which number wins" in docs/evaluation.md.
    """
    text = numerals.simplify(region.text)
    if not region.announced:
        return _last(text)
    if region.labelled and not re.match(r"[\s*_:\"'(\\$]*[-+]?[0-9.]", text[:40]):
        numbered = [part for part in _SENTENCE_END.split(text) if re.search("[0-9]", part)]
        if len(numbered) > 1:
            return _last(text)  # "Answer:" and a whole rationale.
    sentence = _SENTENCE_END.split(text.lstrip(), maxsplit=1)[0]
    spans, between = _spans(sentence)
    if spans or between:
        return _announced(sentence, spans)
    return _number(next(iter(_spans(text)[0]), None))


def parse(text: str) -> Number | None:
    """Returns the number that a text is, with an optional currency and unit, or None."""
    text = text.strip()
    for opening, closing in (("\\boxed{", "}"), ("$", "$"), ("\\(", "\\)"), ("**", "**")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening):
            text = text[len(opening) : len(text) - len(closing)].strip()
    if len(text) > _MAX_TEXT:
        return None
    return _number(_GOLD.fullmatch(numerals.simplify(plain(text)).strip()))


def value(canonical: str) -> Fraction:
    """Returns the value of a canonical number."""
    return Fraction(canonical)


def _announced(sentence: str, spans: Sequence[re.Match[str]]) -> Number | None:
    """Reads the sentence after an announcement: "7", "3 + 4 = 7", "7, since 3 + 4 = 7"."""
    if not spans or _is_list(sentence, spans):
        return None
    end = spans[0].end()
    if not (_OPERATOR.match(sentence, end) or _EQUALS.match(sentence, end)):
        return _number(spans[0])
    # A calculation: the last side that is one number.
    ends = [match.start() for match in re.finditer("=", sentence)] + [len(sentence)]
    for start, end in zip(reversed([-1, *ends[:-1]]), reversed(ends), strict=True):
        side = [span for span in spans if start < span.start() < end]
        if side and not (len(side) > 1 and _OPERATOR.match(sentence, side[0].end(), end)):
            return _number(side[0])
    return None


def _last(text: str) -> Number | None:
    """Reads the last number of a text that announces none."""
    spans, between = _spans(text)
    return None if between else _number(spans[-1] if spans else None)


def _spans(text: str) -> tuple[list[re.Match[str]], bool]:
    """Returns the numbers that may be the answer, and whether "between 3 and 4" comes last.

    Numbers that are turned down, as in "42, not 43", are left out, as are those of a range.
    """
    spans: list[re.Match[str]] = []
    between = False
    for match in _NUMBER.finditer(text):
        if _TURNED_DOWN.search(text[max(0, match.start() - 40) : match.start()]):
            continue
        between = bool(
            spans
            and _AND.fullmatch(text, spans[-1].end(), match.start())
            and _BETWEEN.search(text[max(0, spans[-1].start() - 20) : spans[-1].start()])
        )
        if between:
            spans.pop()
        else:
            spans.append(match)
    return spans, between


def _is_list(sentence: str, spans: Sequence[re.Match[str]]) -> bool:
    """Returns whether a sentence is several different numbers, "3 or 4", "5 feet 3 inches"."""
    if len(spans) < 2 or not _TAIL.fullmatch(sentence, spans[-1].end()):
        return False
    pairs = itertools.pairwise(spans)
    if not all(_LISTED.fullmatch(sentence, a.end(), b.start()) for a, b in pairs):
        return False
    numbers = [_number(span) for span in spans]
    return len({None if number is None else value(number.text) for number in numbers}) > 1


def _number(match: re.Match[str] | None) -> Number | None:
    """Returns a match's number; None if it is too long, divides by zero or is symbolic."""
    if match is None or match["opaque"] or match["symbol"]:
        return None
    if sum(character.isdigit() for character in match[0]) > _MAX_DIGITS:
        return None
    groups = {name: text for name, text in match.groupdict().items() if text is not None}
    found = _fraction(groups)
    if found is None:
        return None
    exact = "bottom" not in groups and "whole" not in groups
    if groups.get("sign") or groups.get("inner"):
        found = -found
    unscaled = _canonical(found, exact)
    words = groups.get("scale", "").lower().split()
    scales = [word.removesuffix("s") for word in words] or [groups.get("suffix", "")]
    for scale in scales:
        found *= _SCALES.get(scale, 1)
    text = _canonical(found, exact)
    return None if text is None or unscaled is None else Number(text, scales[0], unscaled)


def _fraction(groups: Mapping[str, str]) -> Fraction | None:
    """Returns the absolute value of a match, without its scale."""
    if "whole" in groups:
        parts = Fraction(groups["parts"])
        return Fraction(groups["whole"]) + Fraction(groups["part"]) / parts if parts else None
    if "hours" in groups:
        minutes = Fraction(groups["minutes"]) + Fraction(groups.get("seconds", 0)) / 60
        return Fraction(groups["hours"]) + minutes / 60
    top, bottom = _decimal(groups["top"]), _decimal(groups.get("bottom", "1"))
    powers = {name: int(text) for name, text in groups.items() if name in _EXPONENTS}
    if not bottom or any(abs(exponent) > _MAX_EXPONENT for exponent in powers.values()):
        return None
    for name, exponent in powers.items():
        if not name.startswith("power"):
            return top * Fraction(10) ** exponent
        return top**exponent if top or exponent >= 0 else None
    return top / bottom


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _canonical(number: Fraction, exact: bool) -> str | None:
    """Returns canonical text, a decimal if the number was one; None if it is too long."""
    places = _decimal_places(number.denominator) if exact else None
    text = str(number) if places is None or not places else _decimal_text(number, places)
    return text if sum(map(str.isdigit, text)) <= _MAX_DIGITS else None


def _decimal_places(denominator: int) -> int | None:
    """Returns the number of decimals of a fraction, or None if they do not end."""
    places = 0
    while denominator != 1:
        factor = 10 // math.gcd(10, denominator)
        if factor == 10:
            return None
        denominator, places = denominator * factor // 10, places + 1
    return places


def _decimal_text(number: Fraction, places: int) -> str:
    """Returns a fraction as a decimal with the given number of decimals."""
    digits = str(abs(int(number * 10**places))).rjust(places + 1, "0")
    return f"{'-' * (number < 0)}{digits[:-places]}.{digits[-places:]}"
