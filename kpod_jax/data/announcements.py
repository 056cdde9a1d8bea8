r"""Finds where a text announces its answer, such as after "the answer is" or in `\boxed{}`."""

import dataclasses
import functools
import re
import unicodedata

from kpod_jax.data import thoughts

# Typographic characters and their plain equivalents; others are found by `_plain_character`.
_PLAIN = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63", "-"),
    **dict.fromkeys("\u2018\u2019\u02bc", "'"),
    **dict.fromkeys("\u201c\u201d", '"'),
    **dict.fromkeys("\u3010\u3014", "("),
    **dict.fromkeys("\u3011\u3015", ")"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),
    "\u2044": "/",
    "\u3002": ". ",
}
_SUPERSCRIPTS = re.compile(r"[\u00b2\u00b3\u00b9\u2070\u2074-\u207b]+")

_ANSWER = r"(?:(?:final|correct|right|best|only|most\s{1,3}likely)\s{1,3})?answer"
# What ends in a bounded gap, so that a failed match costs little: "the answer to the question is".
_ANNOUNCED = re.compile(
    rf"\b(?:the|my|our|your|so|final)\s{{1,3}}{_ANSWER}"
    r"(?:\s{1,3}(?:to|for|of)\s[^.?!:\n]{1,80}?)?\s{1,3}"
    r"(?:is|will\s{1,3}be|would\s{1,3}be|equals)\b(?!\s{1,3}not\b)"
    rf"|\bfinal\s{{1,3}}answer\s{{0,3}}[*_\"']{{0,4}}\s{{0,3}}(?::|\n)"
    # Not a heading before more text.
    r"|(?P<hash>\#\#\#\#)[ \t]{0,8}"
    r"(?=[-+$\u00a3\u20ac\u00a5.(\\]{0,3}[0-9]|\(?[A-Ja-j]\b|[^\n]*+\s*\Z)"
    r"|(?P<boxed>\\(?:boxed|fbox)[ ]?\{)"
    r"|(?P<tag><answer>)",
    re.IGNORECASE,
)
_LABELLED = re.compile(
    r"\bans(?:wer)?[\"' *_]{0,4}:|^[#*_ ]{1,8}answer[ *_]{0,4}$", re.IGNORECASE | re.MULTILINE
)


@dataclasses.dataclass(frozen=True)
class Region:
    """The part of a text in which the answer is.

    Attributes:
      text: the part.
      announced: whether the text announces its answer there; otherwise it is the whole text.
      labelled: whether only a label such as "Answer:" announces it, after which a whole rationale
        may follow.
    """

    text: str
    announced: bool = False
    labelled: bool = False


def find(text: str) -> Region:
    r"""Returns the part of a text, made plain, in which its answer is.

    The last of "the answer is", "final answer:", `#### 72`, `\boxed{}` and `<answer>` counts; if
    there is none, the last "answer:". A reasoning model's thought is not searched if text follows.
    """
    text = plain(thoughts.split_thought(text)[1] or text)
    if last := last_match(_ANNOUNCED, text):
        rest = text[last.end() :]
        if last["boxed"]:
            return Region(until_closing_brace(rest), True)
        if last["tag"]:
            return Region(re.split(r"</answer>", rest, maxsplit=1, flags=re.I)[0], True)
        return Region(rest.partition("\n")[0] if last["hash"] else rest, True)
    if last := last_match(_LABELLED, text):
        return Region(text[last.end() :], True, True)
    return Region(text)


def plain(text: str) -> str:
    """Returns text with ASCII digits, spaces, quotes and dashes; "m²" becomes "m^2", "½" 1/2."""
    if text.isascii():
        return text
    text = _SUPERSCRIPTS.sub(
        lambda match: "^" + unicodedata.normalize("NFKC", match[0]).replace("\u2212", "-"), text
    )
    text = re.sub(r"(?<=[0-9])\s?(?=[\u00bc-\u00be\u2150-\u215e])", " ", text)
    return re.sub(r"[^\x00-\x7f]", lambda match: _plain_character(match[0]), text)


def last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Returns the last match in `text`."""
    match = None
    for match in pattern.finditer(text):  # noqa: B007 (only the last match is used)
        pass
    return match


@functools.lru_cache(4096)
def _plain_character(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    if unicodedata.category(character) == "Zs":
        return " "
    if unicodedata.decomposition(character).startswith(("<fraction>", "<wide>")):
        return unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    return character


def until_closing_brace(text: str) -> str:
    """Returns `text` up to the brace that closes one opened before it."""
    depth = 1
    for match in re.finditer(r"[{}]", text):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[: match.start()]
    return text
