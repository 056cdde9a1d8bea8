r"""Rewrites characters that a tokenizer does not know as equal ones that it knows.

T5's vocabulary lacks, for example, "÷", "×" and "\". They would all become one unknown token.
Byte-level tokenizers know every character, and their texts stay as they are.
"""

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kpod_jax.data.records import Record
from kpod_jax.data.text_files import MAX_TEXT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Equal text by character; the first one that the tokenizer knows is used.
_EQUAL = {
    **dict.fromkeys("÷∕⁄➗", ("/",)),
    **dict.fromkeys("×✕✖⨯⋅∙∗", ("*", "x")),
    **dict.fromkeys("−–—‐‑‒―➖", ("-",)),
    "➕": ("+",),
    **dict.fromkeys("≈≅≃≒", ("~=", "= about")),
    "~": ("about",),
    "∼": ("~", "about"),
    "≠": ("!=", "is not"),
    "≤": ("<=", "is at most"),
    "≥": (">=", "is at least"),
    "√": ("sqrt",),
    "^": ("**",),
    "∴": ("therefore",),
    "∞": ("infinity",),
    "π": ("pi",),
    "¢": ("cents",),
    "→": ("->",),
    "⇒": ("=>",),
    "•": ("-",),
    "{": ("(",),
    "}": (")",),
    **dict.fromkeys("‘’‚‛`´′", ("'",)),
    **dict.fromkeys("“”„‟″«»", ('"',)),
    "…": ("...",),
}
# Written as "^2", or as "2" where the tokenizer normalizes it.
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_ACCENTED = re.compile(r"[^\W\d_][\u0300-\u036f]{1,4}+")
# LaTeX, where the tokenizer does not know its backslash.
_ARGUMENT = r"\{([^{}\\]{0,200}+)\}"
_LATEX = (
    (re.compile(rf"\\[dt]?frac {{0,2}}{_ARGUMENT} {{0,2}}{_ARGUMENT}"), r"\1/\2"),
    (re.compile(rf"\\sqrt {{0,2}}{_ARGUMENT}"), r"sqrt(\1)"),
    (re.compile(rf"\\(?:boxed|text(?:bf|it|rm)?|math(?:bf|it|rm)|mbox) {{0,2}}{_ARGUMENT}"), r"\1"),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\(?:approx|approxeq|simeq)(?![A-Za-z])"), "≈"),
    (re.compile(r"\\(?:leq?)(?![A-Za-z])"), "≤"),
    (re.compile(r"\\(?:geq?)(?![A-Za-z])"), "≥"),
    (re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:q?quad|[,;: ])(?![A-Za-z])"), " "),
    (re.compile(r"\\[()\[\]!]"), ""),
    (re.compile(r"\\([$%#&_{}])"), r"\1"),
)
# "<" before a number; "<<48/2=24>>" and "<b>" are something else.
_LESS = re.compile(r"(?<=[\w)%]) ?(<=?)(?: ?(?=[\d$(.-])| (?=[A-Za-z]\b))")
_LESS_WORDS = {"<": " is less than ", "<=": " is at most "}
_DEPTH = 3  # Nested arguments, such as those of "\frac{\text{all}}{2}".


@dataclasses.dataclass
class Counts:
    """What a set of texts holds.

    Attributes:
      texts: number of texts.
      unknown: number of texts with characters that stay unknown.
      rewritten: number of the other texts that are rewritten.
      characters: number of texts for each character that stays unknown.
    """

    texts: int = 0
    unknown: int = 0
    rewritten: int = 0
    characters: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


class Characters:
    """The characters that a tokenizer knows."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        """Initializes the object; characters are looked up when a text has them."""
        self._tokenizer, self._known = tokenizer, {}
        self._equal: dict[str, str] = {}
        # A tokenizer that makes no unknown token of this knows every character.
        self._complete = tokenizer.unk_token_id is None or self._knows("\U000f0000")

    def rewrite(self, text: str) -> str:
        """Returns a text with equal text for the characters that the tokenizer does not know.

        A text of more than MAX_TEXT characters, which fits no student, stays as it is.
        """
        if self._complete or len(text) > MAX_TEXT:
            return text
        if "\\" in text and not self._knows("\\"):
            for _ in range(_DEPTH):
                for pattern, equal in _LATEX:
                    text = pattern.sub(equal, text)
        if "<" in text and not self._knows("<"):
            text = _LESS.sub(lambda match: _LESS_WORDS[match[1]], text)
        strange = self._look_up(text)
        if any("\u0300" <= character <= "\u036f" for character in self.unknown(text)):
            text = _ACCENTED.sub(lambda match: unicodedata.normalize("NFC", match[0]), text)
            strange = self._look_up(text)
        if not strange:
            return text
        pieces = []
        for place, character in enumerate(text):
            equal = self._equal[character] if character in strange else character
            before, after = text[place - 1 : place], text[place + 1 : place + 2]
            is_word = equal[:1].isalpha() and character in _EQUAL
            is_fraction = equal[:1].isdigit() and "/" in equal
            joins = (is_word and before.isalnum()) or (is_fraction and before.isdigit())
            pieces += (
                " " * joins,
                equal,
                " " * (equal[-1:].isalpha() and is_word and after.isalnum()),
            )
        return "".join(pieces)

    def unknown(self, text: str) -> set[str]:
        """Returns the characters of a rewritten text that the tokenizer does not know."""
        if self._complete:
            return set()
        self._look_up(text)
        return {character for character in set(text) if not self._known[character]}

    def rewrite_record(self, record: Record) -> Record:
        """Returns a record with rewritten texts; keypoints do not survive a change of steps."""
        if self._complete:
            return record
        steps = tuple(map(self.rewrite, record.steps))
        return dataclasses.replace(
            record,
            question=self.rewrite(record.question),
            steps=steps,
            answer=self.rewrite(record.answer),
            keypoints=record.keypoints if steps == record.steps else None,
        )

    def count(self, counts: Counts, before: str, after: str) -> None:
        """Counts a text, as it was before and after it was rewritten."""
        unknown = self.unknown(after)
        counts.texts += 1
        counts.characters.update(unknown)
        counts.unknown += bool(unknown)
        counts.rewritten += not unknown and before != after

    def _look_up(self, text: str) -> set[str]:
        """Returns the characters of a text that have equal text which must be used."""
        present = set(text)
        for character in present - self._known.keys():
            known = self._known[character] = self._knows(character)
            equal = self._equal_of(character, known)
            if equal is not None:
                self._equal[character] = equal
        return {character for character in present if character in self._equal}

    def _equal_of(self, character: str, known: bool) -> str | None:
        """Returns the equal text to use for a character, or None to keep it."""
        if character in _SUPERSCRIPTS:
            digit = str(_SUPERSCRIPTS.index(character))
            if known and self._ids(character) != self._ids(digit):
                return None
            return f"^{digit}" if self._knows("^") else f"**{digit}"
        if known:
            return None
        choices = [*_EQUAL.get(character, ())]
        plain = unicodedata.normalize("NFKC", character)
        choices += ["".join(_EQUAL["⁄"][0] if c == "⁄" else c for c in plain)]
        parts = unicodedata.normalize("NFKD", character)
        choices += ["".join(c for c in parts if not unicodedata.combining(c))]
        if unicodedata.category(character) in ("Cf", "Cc", "Mn") and (
            character not in "\n\t" and not "\u0300" <= character <= "\u036f"
        ):
            return ""
        return next((c for c in choices if c and c != character and self._knows(c)), None)

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids

    def _knows(self, text: str) -> bool:
        return self._tokenizer.unk_token_id not in self._ids(text)


def describe(counts: Mapping[str, Counts]) -> str:
    """Returns a line about the texts with unknown characters, or "".

    Args:
      counts: counts of each kind of text, by name.
    """
    characters: collections.Counter[str] = collections.Counter()
    for count in counts.values():
        characters += count.characters
    parts = []
    if characters:
        held = " and ".join(f"{c.unknown} of {c.texts} {name}" for name, c in counts.items())
        listed = ", ".join(f"{c!r} in {n}" for c, n in characters.most_common(20))
        more = f", and {len(characters) - 20} more" if len(characters) > 20 else ""
        parts.append(
            f"{held} hold characters that the tokenizer does not know ({listed}{more}): a student "
            "can neither read nor write them (--config.data.reject_unknown_characters=True rejects "
            "such training records)"
        )
    if any(count.rewritten for count in counts.values()):
        held = " and ".join(f"{count.rewritten} {name}" for name, count in counts.items())
        parts.append(f"in {held} all such characters were rewritten as equal ones, such as ÷ as /")
    return "; ".join(parts)
