"""Reads which of several choices a text takes: by letter, "I choose (B)", or by text, "a bank"."""

import re
import unicodedata
from collections.abc import Mapping

from kpod_jax.data import mentions
from kpod_jax.data.announcements import Region, plain

# Maximum length in characters of a choice, and of the line that is read as one.
MAX_TEXT = 200
# Characters that may surround an answer without being part of it.
_MARKS = " \t\n:*_\"'`$"
_LEAD = (
    r"(?:(?i:most likely|likely|probably|clearly|definitely|therefore|indeed|option|choice|letter"
    r"|the),?\s{1,3}){0,3}"
)
# "(B)", "B)", "B.", "B:", "option B", or B alone; "a bank" is not choice A, nor "e.g." choice E.
_LETTER_FIRST = re.compile(
    rf"{_LEAD}(?:\\(?:boxed|text|textbf|mathrm|mathbf)\{{){{0,3}}[*_\"']{{0,3}}"
    r"(?:[(\[]\s?(?P<bracketed>[A-Ja-j])\s?[)\]]"
    r"|(?P<marked>[A-Ja-hj])(?=[)\]:*,}\"']|\.(?!\w)|\s*$|\s-\s)"
    r"|(?P<bare>[B-HJ])(?![\w'-]|\.\w))"
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|\n")
_LISTED = re.compile(r"(?:\A|(?<=[\s,;]))\(?(?P<letter>[A-J])(?:[).:]|\)\.)\s{1,3}")
_ARTICLE = re.compile(r"(?:an?|the|to) ")


def listed(question: str) -> dict[str, str]:
    """Returns the choices that a question ends with, by letter: "Where? (A) bank (B) library"."""
    marks = list(_LISTED.finditer(plain(question)))
    first = max((i for i, mark in enumerate(marks) if mark["letter"] == "A"), default=len(marks))
    marks = marks[first:]
    expected = "ABCDEFGHIJ"[: len(marks)]
    if len(marks) < 2 or "".join(mark["letter"] for mark in marks) != expected:
        return {}
    ends = [mark.start() for mark in marks[1:]] + [len(question)]
    question = plain(question)
    return {
        mark["letter"]: normalize(question[mark.end() : end][:MAX_TEXT])
        for mark, end in zip(marks, ends, strict=True)
    }


def read(region: Region, choices: Mapping[str, str]) -> str | None:
    """Returns the letter of the choice that a region of text takes, else its text.

    Args:
      region: where the answer is.
      choices: normalized text of each choice by letter; empty if they are not known.

    Returns:
      The letter; the normalized text of one line if there is none; or None.
    """
    line = first_line(region.text)
    start = _LETTER_FIRST.match(line)
    letter = next(name for name in start.groups() if name).upper() if start else None
    if choices and letter not in choices:
        letter = None
    if region.announced:
        sentence = _SENTENCE_END.split(region.text.lstrip(_MARKS), maxsplit=1)[0]
        found = (
            letter
            or _starts_with(line, choices)
            or mentions.taken(sentence, mentions.of_letters(sentence))
            or mentions.taken(sentence, mentions.of_texts(sentence, choices))
            or mentions.taken(region.text, mentions.of_letters(region.text), chosen_only=True)
        )
        return found or normalize(line) or None
    named = mentions.of_letters(region.text)
    if letter and {mention.letter for mention in named} <= {letter}:
        return letter
    if found := mentions.taken(region.text, named, choices):
        return found
    if (found := _starts_with(line, choices)) and normalize(line) == choices[found]:
        return found
    if found := mentions.taken_by_text(region.text, choices):
        return found
    # A rationale of several lines that neither names a letter nor announces an answer has none.
    return None if "\n" in region.text.strip() else normalize(line) or None


def parse(text: str, choices: Mapping[str, str]) -> str | None:
    """Returns the letter of a gold answer, "B", "(B) library" or, if listed, "library"."""
    text = plain(text).strip()
    if len(text) > MAX_TEXT or "\n" in text:
        return None
    if start := _LETTER_FIRST.match(text):
        letter = next(name for name in start.groups() if name).upper()
        return letter if not choices or letter in choices else None
    return next((name for name, choice in choices.items() if choice == normalize(text)), None)


def text_of(region: Region) -> str:
    """Returns the text of a choice without its letter and article, up to the end of its clause."""
    line = first_line(region.text)
    start = _LETTER_FIRST.match(line)
    line = (line[start.end() :] if start else line).strip(_MARKS + ".)(-")
    line = re.sub(rf"\A{_LEAD}", "", line)
    line = re.split(r"[.,;:!?(](?=\s|\Z|[A-Z])|\s(?:because|since|as)\s", line)[0]
    return without_article(normalize(line))


def normalize(text: str) -> str:
    """Returns `text` lowercased, with single spaces and no surrounding punctuation."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"^[\W_]+|[\W_]+$", "", text)


def without_article(text: str) -> str:
    """Returns normalized text without its first word if that is an article."""
    return _ARTICLE.sub("", text, count=1) if _ARTICLE.match(text) else text


def first_line(text: str) -> str:
    r"""Returns the first line that is not just marks, without \text{}, at most MAX_TEXT long."""
    line = text.lstrip(_MARKS).partition("\n")[0][:MAX_TEXT]
    return re.sub(r"\\(?:text(?:bf|it)?|mathrm|mathbf) ?\{([^{}]*)\}?", r"\1", line)


def _starts_with(line: str, choices: Mapping[str, str]) -> str | None:
    """Returns the choice whose text a line starts with, after an article."""
    found = mentions.of_texts(line, choices)
    if found and not without_article(normalize(line[: found[0].start]) + " ").strip():
        return found[0].letter
    return None
