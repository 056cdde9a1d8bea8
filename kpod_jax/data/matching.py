"""Finds the record that a row of another file means, by its question.

Publishers lay out the same question in different ways: with other quotation marks, with or without
a full stop between its parts, with or without the choices of a multiple-choice question.
"""

import html
import re
import unicodedata
from collections.abc import Iterable, Iterator

# Numbers with their decimal and thousands marks, words, and signs that change a calculation.
_WORD = re.compile(
    r"\d++(?:,\d{3})*+(?:\.\d++)?+|[^\W\d_]++|[+*=<>^%]|[-/](?=\s?[\d(.])", re.UNICODE
)
_DROPPED = dict.fromkeys(map(ord, "'’‘`´′ʼ\u00ad\u200b\u200c\u200d\ufeff"))
_PLAIN = str.maketrans("−–—‐‑‒÷×∕⁄", "------/*//")
# What prompts put around a question.
_BEFORE = re.compile(r"(?:q|question|problem) ")
_AFTER = re.compile(
    r" (?:(?:a|answer|solution) )?+lets think step by step(?: a| answer)?$| (?:a|answer|solution)$"
)
# What stands between a question and its choices.
_MARKERS = re.compile(
    r" (?:(?:the |answer )?(?:choices|options)(?: are)?"
    r"|choose (?:one )?from(?: the following)?)(?= )| (?:or|and)(?= [a-j] )"
)
# Our own layout: "Where? (A) bank (B) library".
_CHOICE = re.compile(r"\(([A-J])\)")
_LABELS = "abcdefghij"
_BETWEEN_LETTERS = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")
_MIXED = re.compile(r"(?<=\d)(?=[¼½¾⅐-⅞])")


def words_of(text: str) -> str:
    """Returns the words and numbers of a text in lower case, with single spaces."""
    text = unicodedata.normalize("NFKC", _MIXED.sub(" ", html.unescape(text)))
    words = _WORD.findall(text.translate(_DROPPED | _PLAIN).casefold())
    return " ".join(word.replace(",", "") for word in words)


def keys_of(question: str) -> Iterator[str]:
    """Yields the forms of a record's question: whole and, if it has choices, without them.

    The choices may have letters, numbers or neither before them.
    """
    yield words_of(question)
    places = list(_CHOICE.finditer(question))
    labels = "".join(match[1] for match in places).lower()
    if len(labels) < 2 or not _LABELS.startswith(labels):
        return
    stem = words_of(question[: places[0].start()])
    ends = [match.start() for match in places[1:]] + [len(question)]
    choices = [words_of(question[m.end() : end]) for m, end in zip(places, ends, strict=True)]
    yield stem
    yield " ".join([stem, *choices])
    for first in (0, 1):
        yield " ".join([stem, *(f"{i} {text}" for i, text in enumerate(choices, first))])


def forms_of(question: str) -> Iterator[str]:
    """Yields the forms of a row's question: as it is, then without what prompts add to it."""
    yield (whole := words_of(question))
    bare = _AFTER.sub("", _BEFORE.sub("", whole, count=1) if _BEFORE.match(whole) else whole)
    yield bare
    yield _MARKERS.sub("", bare)


def _joined(words: str) -> str:
    """Removes spaces between letters, which may lack where a question's parts were joined."""
    return _BETWEEN_LETTERS.sub("", words)


class Questions:
    """Ids of records by their questions."""

    def __init__(self, questions: Iterable[tuple[str, str]]) -> None:
        """Indexes (id, question) pairs."""
        self._ids: dict[str, list[str]] = {}
        for id_, question in questions:
            for key in dict.fromkeys(map(_joined, keys_of(question))):
                self._ids.setdefault(key, []).append(id_)

    def find(self, question: str) -> list[str]:
        """Returns the ids of the records that a question may be of."""
        forms = map(_joined, forms_of(question))
        found = (self._ids[form] for form in forms if form in self._ids)
        return next(found, [])
