"""Splits a rationale into steps without losing a character."""

import re

# Abbreviations that never end a sentence.
_NEVER_END = frozenset(
    "mr mrs ms dr prof st mt vs viz cf e.g i.e approx fig eq eqs dept gen sq cu".split()
)
# Abbreviations that end a sentence only before a capital letter.
_END_BEFORE_CAPITAL = frozenset(
    "a.m p.m etc inc ltd co corp jr sr ph.d in ft yd yds mi lb lbs oz pt qt gal hr hrs min mins "
    "sec secs wk wks yr yrs ave avg max jan feb mar apr jun jul aug sept sep oct nov dec".split()
)
_ACRONYM = re.compile(r"(?:[A-Za-z]\.)+[A-Za-z]")
_WORD_BEFORE = re.compile(r"[A-Za-z.]+\Z")
_MAX_WORD = 12
# "1.", "(2.", "a.", "Step 3." and the like, at the start of a step.
_ENUMERATION = re.compile(
    r"[\s(*#>-]*(?:(?:step|part)\s+)?(?:\d{1,2}|[A-Za-z])\.\**\s*", re.IGNORECASE
)
# A sentence continues before these: "5! = 120", "(see fig.), so".
_CONTINUES = frozenset("=+-*/×÷<>≤≥,;:)")
_QUOTES = frozenset("\"'”’»")

_CANDIDATE = re.compile(
    r"(?P<annotation><<[^<>\n]*>>)"
    r"|(?P<line>[\n\r]+)"
    r"|(?P<wide>[。！？]+[\"'”’»」』)）\]]*)"
    r"|(?P<mark>[.!?…]+)"
    r"(?P<close>(?:[\"'”’»)\]}*_$`]|<<[^<>\n]*>>|\s?\\(?:[\])]|end\{\w+\*?\}))*)(?=\s|\Z)"
    # A period without a space after it: "5 apples.Then", "5 apples.2. Add".
    r"|(?P<glued>(?<=[a-z0-9)'\"%]{2})\.(?=[A-Z][a-z])|(?<=[a-z)*]{2})\.(?=\d{1,2}\.\s))"
)


def split_steps(text: str, separator: str = "") -> tuple[str, ...]:
    """Splits a rationale into steps.

    By default a step ends with a sentence (. ! ? 。 ！ ？) or a line. Numbers ("3.5", "$4.20"),
    abbreviations ("Mr.", "e.g.", "5 ft."), enumerations ("1. Add"), ellipses inside a sentence and
    calculator annotations (`<<48/2=24>>`) are not split. Text without a letter or digit, such as a
    horizontal rule, does not form a step.

    Args:
      text: the rationale.
      separator: if set, only this text ends a step; "." is the paper's rule, which splits "3.5".

    Returns:
      The steps, none empty, each with its trailing whitespace, so `"".join(steps) == text`. An
      empty text has no steps.
    """
    if separator:
        run = re.compile(rf"(?:{re.escape(separator)}\s*)+")
        ends = [match.end() for match in run.finditer(text)]
    else:
        ends = _sentence_ends(text)
    pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True) if a < b]
    # Pieces without content are prepended to the next step; trailing ones are appended to the last.
    steps: list[str] = []
    pending = ""
    for piece in pieces:
        pending += piece
        if _has_content(piece, separator):
            steps.append(pending)
            pending = ""
    if pending and steps:
        steps[-1] += pending
    elif pending:
        steps = [pending]
    return tuple(steps)


def _sentence_ends(text: str) -> list[int]:
    """Returns the ends of the steps in increasing order, including trailing whitespace."""
    ends: list[int] = []
    for match in _CANDIDATE.finditer(text):
        start = ends[-1] if ends else 0
        if match["annotation"] is not None or match.end() <= start:
            continue  # An annotation, or a line break already skipped after a sentence.
        end = _skip_space(text, match.end())
        if match["mark"] is None or _ends_sentence(text, match, start, end):
            ends.append(end)
    return ends


def _ends_sentence(text: str, match: re.Match[str], start: int, end: int) -> bool:
    """Returns whether a mark followed by whitespace ends the step that began at `start`."""
    if end == len(text):
        return True
    mark, following = match["mark"], text[end]
    if "\n" not in text[match.end() : end] and (
        following in _CONTINUES or text.startswith(r"\\", end)  # A LaTeX line break.
    ):
        return False
    if following.islower() and (mark[0] == "…" or "..." in mark or _QUOTES & set(match["close"])):
        return False
    if mark != ".":
        return True
    if match.end() - start <= 2 * _MAX_WORD and _ENUMERATION.fullmatch(text, start, match.end()):
        return False
    before = text[max(start, match.start() - _MAX_WORD) : match.start()]
    word = _WORD_BEFORE.search(before)
    if word is None:
        return True
    if word[0] == "No" and following.isdigit():
        return False
    if word[0].lower() in _NEVER_END:
        return False
    if word[0].lower() in _END_BEFORE_CAPITAL or _ACRONYM.fullmatch(word[0]):
        return following.isupper()
    return True


def _skip_space(text: str, place: int) -> int:
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def _has_content(piece: str, separator: str) -> bool:
    if separator:
        return bool(piece.replace(separator, "").strip())
    return any(map(str.isalnum, piece)) and not _ENUMERATION.fullmatch(piece)
