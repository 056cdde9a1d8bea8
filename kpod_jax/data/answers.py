"""Extracts the final answer from generated text.

Parsing uses only regular expressions and `fractions.Fraction`: nothing is evaluated, and numbers
are limited in length, so parsing takes time linear in the length of the text.
"""

import re
import unicodedata
from fractions import Fraction

from kpod_jax.utils.errors import UserError, one_of

KINDS = ("number", "choice", "yes_no")

# Longer numbers do not answer word problems; the limit keeps Fraction arithmetic cheap.
_MAX_DIGITS = 40
_MAX_EXPONENT = 30
# Maximum length in characters of a text answer, such as a choice.
_MAX_TEXT = 200

_ANSWER_IS = re.compile(
    r"\bthe\s{1,3}(?:(?:final|correct|right|best)\s{1,3})?answer\s{1,3}is\b", re.IGNORECASE
)
_LABELLED = re.compile(r"\banswer[ *_]{0,3}:", re.IGNORECASE)

# The number of thousands groups is limited: otherwise a failed match is retried from each group.
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,14}+(?![0-9])|[0-9]++)"
DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]++)?|(?<![\w])\.[0-9]++)"
# A minus is a sign only if no operand precedes it: "5-3" contains 5 and 3.
_SIGN = r"(?:(?<![\w.)\]}])(?P<sign>-)(?:\\?[$£€¥])?|(?:\\?[$£€¥])?(?P<inner>(?<=[$£€¥])-)?)"
_NUMBER = re.compile(
    rf"{_SIGN}(?:"
    r"\\[dt]?frac ?\{ ?(?P<over>-?[0-9]++) ?\} ?\{ ?(?P<under>[0-9]++) ?\}"
    r"|(?<![A-Za-z_0-9])(?P<whole>[0-9]++) (?P<part>[0-9]++)/(?P<parts>[0-9]++)(?![0-9/])"
    rf"|(?<![A-Za-z_0-9])(?P<top>{DECIMAL})"
    rf"(?:[eE](?P<exponent>[+-]?[0-9]++)| ?/ ?(?P<bottom>{DECIMAL})(?! ?/))?"
    r")"
)
# Typographic characters and their plain equivalents.
_TO_PLAIN = str.maketrans(
    {"\u2212": "-", "\u2044": "/", "\u00a0": " ", "\u202f": " ", "\u2009": " "}
)

# Characters that may surround an answer without being part of it.
_MARKS = " \t\n:*_\"'`$"
# "(B)", "B)", "B.", "B:", "option B", or B alone; "a bank" is not choice A.
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


_GOLD_NUMBER = re.compile(
    rf"[-+]?[$£€¥]?\s?(?:{_NUMBER.pattern})\s?(?:[%°]|(?:[^\W\d_][^\W\d_/.'’-]*(?:\^?[0-9])?\s?){{1,4}})?\.?"
)
_EXPECTED = {
    "number": "a number such as 72, 1,200, 3/4 or '12 apples'",
    "choice": "the letter of a choice",
    "yes_no": "yes or no",
}


def extract_answer(text: str, kind: str = "number") -> str | None:
    r"""Returns the final answer in a generation, in canonical form.

    The search starts after the LAST "the answer is" (any case; also "the final answer is"). If
    that phrase is missing, the answer is taken from after the last `####`, else from inside the
    last `\boxed{}`, else from after the last "answer:", else from anywhere, last match first. A
    text that announces an answer but gives none has no answer: text before the last "the answer
    is" is never searched.

    Args:
      text: any text, including adversarial text.
      kind: the kind of answer.
        "number": `1234.5` for "$1,234.50", `-3`, `1/2` for "2/4" and "\frac{1}{2}", `5/2` for
          "2 1/2", `3` for "3.0". Units, "%" and periods are dropped: "50%" is `50`. For
          "the answer is 3 + 4 = 7", the number after the last "=" of the first sentence.
        "choice": the letter `A` ... `E` if there is one, else the lowercase text without
          surrounding punctuation.
        "yes_no": `yes` or `no`; "true" and "false" count as yes and no.

    Returns:
      The canonical text, or None if there is no answer. Canonical numbers, letters, "yes" and
      "no" are returned unchanged.

    Raises:
      UserError: the kind is unknown.
    """
    if kind not in KINDS:
        raise UserError(
            f"Unknown answer kind {kind!r}; {one_of(kind, KINDS)}. "
            "Set the data set's answer kind to one of these."
        )
    text = text.translate(_TO_PLAIN)
    region = _answer_region(text)
    if kind == "number":
        return _canonical_number(text, region)
    if kind == "choice":
        return _canonical_choice(text, region)
    match = _last_match(_YES_NO, text) if region is None else _YES_NO.search(region)
    return None if match is None else "yes" if match["yes"] else "no"


def parse_gold(text: str, kind: str = "number", question: str = "") -> str:
    """Checks a data set's gold answer and returns it in canonical form.

    The whole text must be an answer of the kind: a number with an optional currency, unit or
    percent sign; a letter, with or without the text of its choice; yes, no, true or false.

    Args:
      text: the answer as it is written in the data.
      kind: the kind of answer.
      question: its question, which may list the choices, "Where? (A) bank (B) library".

    Raises:
      ValueError: it is none; the message continues "line 3", as in "has the answer 'Paris', which
        is not a number; ...".
      UserError: the kind is unknown.
    """
    answer = extract_answer(text.strip(), kind)
    whole = text.strip().translate(_TO_PLAIN)
    if kind == "number":
        valid = _GOLD_NUMBER.fullmatch(whole)
    elif kind == "choice":
        valid = _LETTER_FIRST.match(whole)
    else:
        valid = _YES_NO.fullmatch(whole.rstrip("."))
    if answer is None or not valid:
        raise ValueError(
            f"has the answer {text.strip()!r:.80}, which is not a {kind}; expected "
            f"{_EXPECTED[kind]} (set --config.data.answer_kind to the kind of the answers)"
        )
    return answer


def answers_equal(a: str | None, b: str | None, kind: str = "number") -> bool:
    """Returns whether two answers, canonical or not, are equal.

    Numbers are compared exactly, as fractions: "0.5", "1/2" and "2/4" are equal, "0.33" and "1/3"
    are not. Choices are compared by letter if both have one, else by text. An answer that is None
    or cannot be parsed equals nothing.

    Raises:
      UserError: the kind is unknown.
    """
    if a is None or b is None:
        extract_answer("", kind)  # Checks the kind.
        return False
    left, right = extract_answer(a, kind), extract_answer(b, kind)
    if left is None or right is None:
        return False
    if kind == "number":
        return Fraction(left) == Fraction(right)
    if kind == "choice" and left.isupper() != right.isupper():
        # Only letters are canonically uppercase, so one side has a letter: "(B) bank" and "bank".
        left, right = _choice_text(a), _choice_text(b)
        return left == right and left != ""
    return left == right


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Returns the last match in `text`."""
    match = None
    for match in pattern.finditer(text):  # noqa: B007 (only the last match is used)
        pass
    return match


def _answer_region(text: str) -> str | None:
    """Returns the part of `text` in which the answer is announced, or None."""
    if last := _last_match(_ANSWER_IS, text):
        return text[last.end() :]
    if "####" in text:
        return text.rpartition("####")[2].partition("\n")[0]
    if "\\boxed{" in text:
        return until_closing_brace(text.rpartition("\\boxed{")[2])
    last = _last_match(_LABELLED, text)
    return None if last is None else text[last.end() :]


def until_closing_brace(text: str) -> str:
    """Returns `text` up to the brace that closes one opened before it."""
    depth = 1
    for match in re.finditer(r"[{}]", text):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[: match.start()]
    return text


def _canonical_number(text: str, region: str | None) -> str | None:
    if region is None:
        match = _last_match(_NUMBER, _strip_latex(text))
    else:
        region = _strip_latex(region)
        sentence = re.split(r"[.!?]\s|\n", region.lstrip(), maxsplit=1)[0]
        match = _NUMBER.search(sentence.rpartition("=")[2]) or _NUMBER.search(region)
    return None if match is None else _canonical(match)


def _strip_latex(text: str) -> str:
    return text.replace("{,}", ",").replace("\\!", "").replace("\\,", "")


def _canonical(match: re.Match[str]) -> str | None:
    """Returns a number as canonical text, or None if it is too long or divides by zero."""
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
    """Returns a fraction parsed from a decimal as a decimal again, without trailing zeros."""
    places = 0
    while value.denominator != 1:
        value, places = value * 10, places + 1
    digits = str(abs(value.numerator)).rjust(places + 1, "0")
    return f"{'-' * (value < 0)}{digits[:-places]}.{digits[-places:]}"


def _canonical_choice(text: str, region: str | None) -> str | None:
    line = _first_line(text if region is None else region)
    match = _LETTER_FIRST.match(line)
    if match is None and region is None:
        match = _last_match(_LETTER_NAMED, text)
    if match is not None:
        return next(letter for letter in match.groups() if letter).upper()
    if region is None and "\n" in text.strip():
        return None  # A rationale that neither names a letter nor announces an answer.
    return _normalize(line) or None


def _choice_text(text: str) -> str:
    """Returns the text of a choice without its letter."""
    region = _answer_region(text)
    line = _first_line(text if region is None else region)
    letter = _LETTER_FIRST.match(line)
    return _normalize(line if letter is None else line[letter.end() :])


def _first_line(text: str) -> str:
    return text.lstrip(_MARKS).partition("\n")[0][:_MAX_TEXT]


def _normalize(text: str) -> str:
    """Returns `text` lowercased, with single spaces and no surrounding punctuation."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"^[\W_]+|[\W_]+$", "", text)
