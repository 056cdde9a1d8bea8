"""From a generation to its final answer.

Text is read with regular expressions and `fractions.Fraction` alone: nothing is evaluated, and
the number of digits is bounded, so that no generation can cost more than a pass over it.
"""

import re
import unicodedata
from fractions import Fraction

from kpod_jax.utils.errors import UserError

KINDS = ("number", "choice", "yes_no")

# A longer number is no answer to a word problem; the bound keeps Fraction's arithmetic small.
_MAX_DIGITS = 40
_MAX_EXPONENT = 30
# An answer that is text, such as a choice, is shorter than this.
_MAX_TEXT = 200

_ANNOUNCED = re.compile(
    r"\bthe\s{1,3}(?:(?:final|correct|right|best)\s{1,3})?answer\s{1,3}is\b", re.IGNORECASE
)
_LABELLED = re.compile(r"\banswer[ *_]{0,3}:", re.IGNORECASE)

# The groups of thousands are bounded, as a failed match would otherwise be tried from each of them.
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,14}+(?![0-9])|[0-9]++)"
DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]++)?|(?<![\w])\.[0-9]++)"
# A sign belongs to the number where nothing stands before it: "5-3" holds 5 and 3.
_SIGN = r"(?:(?<![\w.)\]}])(?P<sign>-)(?:\\?[$£€¥])?|(?:\\?[$£€¥])?(?P<inner>(?<=[$£€¥])-)?)"
_NUMBER = re.compile(
    rf"{_SIGN}(?:"
    r"\\[dt]?frac ?\{ ?(?P<over>-?[0-9]++) ?\} ?\{ ?(?P<under>[0-9]++) ?\}"
    r"|(?<![A-Za-z_0-9])(?P<whole>[0-9]++) (?P<part>[0-9]++)/(?P<parts>[0-9]++)(?![0-9/])"
    rf"|(?<![A-Za-z_0-9])(?P<top>{DECIMAL})"
    rf"(?:[eE](?P<exponent>[+-]?[0-9]++)| ?/ ?(?P<bottom>{DECIMAL})(?! ?/))?"
    r")"
)
# What LaTeX and typography write for the plain characters.
_PLAIN = {"\u2212": "-", "\u2044": "/", "\u00a0": " ", "\u202f": " ", "\u2009": " "}
_UNWANTED = str.maketrans(_PLAIN)

# What may stand around an answer without being part of it.
_MARKS = " \t\n:*_\"'`$"
# "(B)", "B)", "B.", "B:", "option B", or B alone; "a bank" is not the letter A.
_LETTER_FIRST = re.compile(
    r"(?:(?i:option|choice|letter)\s{1,3})?(?:\\(?:boxed|text|textbf|mathrm)\{){0,2}"
    r"(?:[(\[]\s?(?P<bracketed>[A-Ea-e])\s?[)\]]"
    r"|(?P<marked>[A-Ea-e])(?=[).:*,}\]]|\s*$)"
    r"|(?P<bare>[B-E])(?![\w'’-]))"
)
_LETTER_NAMED = re.compile(
    r"[(\[](?P<bracketed>[A-E])[)\]]|\b(?i:option|choice|letter)\s{1,3}(?P<named>[A-E])\b"
)
_YES_NO = re.compile(r"\b(?:(?P<yes>yes|true)|(?P<no>no|false))\b", re.IGNORECASE)


def extract_answer(text: str, kind: str = "number") -> str | None:
    r"""Finds the final answer in a generation and writes it canonically.

    It is looked for after the LAST "the answer is" (any case; also "the final answer is"); where
    that is missing, after the last `####`, then inside the last `\boxed{}`, then after the last
    "answer:", then anywhere, from the end. A text that announces an answer and gives none has
    none: nothing before "the answer is" is looked at.

    Args:
      text: any text, however hostile.
      kind: what is looked for.
        "number": `1234.5` for "$1,234.50", `-3`, `1/2` for "2/4" and "\frac{1}{2}", `5/2` for
          "2 1/2", `3` for "3.0". Units, "%" and full stops are dropped: "50%" is `50`. In
          "the answer is 3 + 4 = 7" it is the number after the last "=" of the first sentence.
        "choice": the letter `A` ... `E` where there is one, else the text in lower case without
          its punctuation.
        "yes_no": `yes` or `no`; "true" and "false" count as these.

    Returns:
      The canonical text, or None where there is no answer. Given a canonical number, letter, "yes"
      or "no", it returns the same again.

    Raises:
      UserError: the kind is unknown.
    """
    if kind not in KINDS:
        raise UserError(
            f"Unknown kind of answer {kind!r}; expected one of {', '.join(KINDS)}. "
            "Set the data set's answer kind to one of these."
        )
    text = text.translate(_UNWANTED)
    region = _announced(text)
    if kind == "number":
        return _canonical_number(text, region)
    if kind == "choice":
        return _canonical_choice(text, region)
    match = _last(_YES_NO, text) if region is None else _YES_NO.search(region)
    return None if match is None else "yes" if match["yes"] else "no"


def answers_equal(a: str | None, b: str | None, kind: str = "number") -> bool:
    """Whether two answers, canonical or as they were written, are the same.

    Numbers are compared exactly, as fractions: "0.5", "1/2" and "2/4" are equal, "0.33" and "1/3"
    are not. Choices are compared by their letters where both have one, else by their texts.
    An answer that is None or cannot be read is equal to nothing.

    Raises:
      UserError: the kind is unknown.
    """
    if a is None or b is None:
        extract_answer("", kind)  # The kind is checked all the same.
        return False
    left, right = extract_answer(a, kind), extract_answer(b, kind)
    if left is None or right is None:
        return False
    if kind == "number":
        return Fraction(left) == Fraction(right)
    if kind == "choice" and left.isupper() != right.isupper():
        # A letter, the only canonical text in upper case, on one side: "(B) bank" against "bank".
        left, right = _choice_text(a), _choice_text(b)
        return left == right and left != ""
    return left == right


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The last match in `text`."""
    match = None
    for match in pattern.finditer(text):  # noqa: B007 (only the last is wanted)
        pass
    return match


def _announced(text: str) -> str | None:
    """The part of `text` that an announcement of the answer points to, if there is one."""
    if last := _last(_ANNOUNCED, text):
        return text[last.end() :]
    if "####" in text:
        return text.rpartition("####")[2].partition("\n")[0]
    if "\\boxed{" in text:
        return _braced(text.rpartition("\\boxed{")[2])
    last = _last(_LABELLED, text)
    return None if last is None else text[last.end() :]


def _braced(text: str) -> str:
    """`text` up to the brace that closes an already opened one."""
    depth = 1
    for match in re.finditer(r"[{}]", text):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[: match.start()]
    return text


def _canonical_number(text: str, region: str | None) -> str | None:
    if region is None:
        match = _last(_NUMBER, _latex_free(text))
    else:
        region = _latex_free(region)
        sentence = re.split(r"[.!?]\s|\n", region.lstrip(), maxsplit=1)[0]
        match = _NUMBER.search(sentence.rpartition("=")[2]) or _NUMBER.search(region)
    return None if match is None else _canonical(match)


def _latex_free(text: str) -> str:
    return text.replace("{,}", ",").replace("\\!", "").replace("\\,", "")


def _canonical(match: re.Match[str]) -> str | None:
    """One number as canonical text; None where it is too long or divides by zero."""
    if sum(character.isdigit() for character in match[0]) > _MAX_DIGITS:
        return None
    groups = match.groupdict()
    ratio = True
    if groups["over"] is not None:
        over, under = Fraction(groups["over"]), Fraction(groups["under"])
    elif groups["whole"] is not None:
        under = Fraction(groups["parts"])
        over = Fraction(groups["whole"]) * under + Fraction(groups["part"])
    else:
        over, under = _fraction(groups["top"]), _fraction(groups["bottom"] or "1")
        ratio = groups["bottom"] is not None
        if groups["exponent"] is not None:
            exponent = int(groups["exponent"])
            if abs(exponent) > _MAX_EXPONENT:
                return None
            over *= Fraction(10) ** exponent
    if under == 0:
        return None
    value = over / under
    if groups["sign"] or groups["inner"]:
        value = -value
    if ratio or value.denominator == 1:
        return str(value)
    return _decimal_text(value)


def _fraction(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def _decimal_text(value: Fraction) -> str:
    """A fraction that a decimal was read as, without trailing zeros."""
    places = 0
    while value.denominator != 1:
        value, places = value * 10, places + 1
    digits = str(abs(value.numerator)).rjust(places + 1, "0")
    return f"{'-' * (value < 0)}{digits[:-places]}.{digits[-places:]}"


def _canonical_choice(text: str, region: str | None) -> str | None:
    line = _first_line(text if region is None else region)
    match = _LETTER_FIRST.match(line)
    if match is None and region is None:
        match = _last(_LETTER_NAMED, text)
    if match is not None:
        return next(letter for letter in match.groups() if letter).upper()
    if region is None and "\n" in text.strip():
        return None  # A rationale that names no letter and announces no answer.
    return _plain(line) or None


def _choice_text(text: str) -> str:
    """The text of a choice without its letter."""
    region = _announced(text)
    line = _first_line(text if region is None else region)
    letter = _LETTER_FIRST.match(line)
    return _plain(line if letter is None else line[letter.end() :])


def _first_line(text: str) -> str:
    return text.lstrip(_MARKS).partition("\n")[0][:_MAX_TEXT]


def _plain(text: str) -> str:
    """Lower case, single spaces, no punctuation around it."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"^[\W_]+|[\W_]+$", "", text)
