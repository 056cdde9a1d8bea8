"""Cutting a rationale into steps, without losing a character."""

import re

# Never the end of a sentence, whatever follows.
_BOUND = frozenset(
    "mr mrs ms dr prof st mt vs viz cf e.g i.e approx fig eq eqs dept gen sq cu".split()
)
# The end of a sentence only where a capital letter follows.
_LOOSE = frozenset(
    "a.m p.m etc inc ltd co corp jr sr ph.d in ft yd yds mi lb lbs oz pt qt gal hr hrs min mins "
    "sec secs wk wks yr yrs ave avg max jan feb mar apr jun jul aug sept sep oct nov dec".split()
)
_ACRONYM = re.compile(r"(?:[A-Za-z]\.)+[A-Za-z]")
_WORD_BEFORE = re.compile(r"[A-Za-z.]+\Z")
_LONGEST_WORD = 12
# "1.", "(2.", "a.", "Step 3." and the like, with nothing before them in their step.
_ENUMERATION = re.compile(
    r"[\s(*#>-]*(?:(?:step|part)\s+)?(?:\d{1,2}|[A-Za-z])\.\**\s*", re.IGNORECASE
)
# "5! = 120" and "(see fig.), so" go on.
_GOES_ON = frozenset("=+-*/×÷<>≤≥,;:)")
_QUOTES = frozenset("\"'”’»")

_CANDIDATE = re.compile(
    r"(?P<annotation><<[^<>\n]*>>)"
    r"|(?P<line>[\n\r]+)"
    r"|(?P<wide>[。！？]+[\"'”’»」』)）\]]*)"
    r"|(?P<mark>[.!?…]+)"
    r"(?P<close>(?:[\"'”’»)\]}*_$`]|<<[^<>\n]*>>|\s?\\(?:[\])]|end\{\w+\*?\}))*)(?=\s|\Z)"
    # A full stop whose space was lost: "5 apples.Then", "5 apples.2. Add".
    r"|(?P<glued>(?<=[a-z0-9)'\"%]{2})\.(?=[A-Z][a-z])|(?<=[a-z)*]{2})\.(?=\d{1,2}\.\s))"
)


def split_steps(text: str, separator: str = "") -> tuple[str, ...]:
    """Cuts a rationale into its steps.

    By default a step ends with a sentence (. ! ? 。 ！ ？) or a line. Numbers ("3.5", "$4.20"),
    abbreviations ("Mr.", "e.g.", "5 ft."), enumerations ("1. Add"), ellipses inside a sentence and
    calculator annotations (`<<48/2=24>>`) stay whole. What has no letter or digit, such as a rule,
    is no step of its own.

    Args:
      text: the rationale.
      separator: a text that ends steps, and nothing else does; "." is the paper's way, which cuts
        "3.5" apart.

    Returns:
      The steps, none empty, each with the white space that follows it: `"".join(steps) == text`.
      No steps for an empty text.
    """
    if separator:
        run = re.compile(rf"(?:{re.escape(separator)}\s*)+")
        ends = [match.end() for match in run.finditer(text)]
    else:
        ends = _sentence_ends(text)
    pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True) if a < b]
    # A piece without content joins the next one, and those at the end join the last step.
    steps: list[str] = []
    waiting = ""
    for piece in pieces:
        waiting += piece
        if _has_content(piece, separator):
            steps.append(waiting)
            waiting = ""
    if waiting and steps:
        steps[-1] += waiting
    elif waiting:
        steps = [waiting]
    return tuple(steps)


def _sentence_ends(text: str) -> list[int]:
    """Where steps end, white space after them included; rising."""
    ends: list[int] = []
    for match in _CANDIDATE.finditer(text):
        start = ends[-1] if ends else 0
        if match["annotation"] is not None or match.end() <= start:
            continue  # `start` is behind a line's end that follows a sentence's.
        end = _skip_space(text, match.end())
        if match["mark"] is None or _ends_sentence(text, match, start, end):
            ends.append(end)
    return ends


def _ends_sentence(text: str, match: re.Match[str], start: int, end: int) -> bool:
    """Whether a punctuation mark before white space ends the step that began at `start`."""
    if end == len(text):
        return True
    mark, following = match["mark"], text[end]
    if "\n" not in text[match.end() : end] and (
        following in _GOES_ON or text.startswith(r"\\", end)  # A line's end in LaTeX.
    ):
        return False
    if following.islower() and (mark[0] == "…" or "..." in mark or _QUOTES & set(match["close"])):
        return False
    if mark != ".":
        return True
    if match.end() - start <= 2 * _LONGEST_WORD and _ENUMERATION.fullmatch(
        text, start, match.end()
    ):
        return False
    before = text[max(start, match.start() - _LONGEST_WORD) : match.start()]
    word = _WORD_BEFORE.search(before)
    if word is None:
        return True
    if word[0] == "No" and following.isdigit():
        return False
    if word[0].lower() in _BOUND:
        return False
    if word[0].lower() in _LOOSE or _ACRONYM.fullmatch(word[0]):
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
