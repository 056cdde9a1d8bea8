"""Reads which of several choices a text takes: by letter, "I choose (B)", or by text, "a bank".

Every mention of a choice is taken as chosen, turned down or neither by the words around it.
"""

import collections
import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence

from kpod_jax.data.announcements import Region, plain

# Maximum length in characters of a choice, and of the line that is read as one.
MAX_TEXT = 200
# Characters that may surround an answer without being part of it.
_MARKS = " \t\n:*_\"'`$"
# Longer texts are judged by their end, where the answer is.
_MAX_MENTIONS = 200

_LEAD = r"(?:(?i:most likely|likely|probably|clearly|definitely|therefore|indeed|option|choice|letter|the),?\s{1,3}){0,3}"
# "(B)", "B)", "B.", "B:", "option B", or B alone; "a bank" is not choice A, nor "e.g." choice E.
_LETTER_FIRST = re.compile(
    rf"{_LEAD}(?:\\(?:boxed|text|textbf|mathrm|mathbf)\{{){{0,3}}[*_\"']{{0,3}}"
    r"(?:[(\[]\s?(?P<bracketed>[A-Ja-j])\s?[)\]]"
    r"|(?P<marked>[A-HJa-hj])(?=[)\]:*,}\"']|\.(?!\w)|\s*$|\s-\s)"
    r"|(?P<bare>[B-HJ])(?![\w'-]|\.\w))"
)
_MENTION = re.compile(
    r"(?:\b(?i:option|choice|letter)\s{1,3})?[(\[]\s?(?P<bracketed>[A-Ja-j])\s?[)\]]"
    r"|\b(?i:option|choice|letter)\s{1,3}[\"']?(?P<named>[A-Ja-j])\b(?![\'-]\w)"
    r"|(?<![\w'.&-])(?P<bare>[A-HJ])(?![\w&+#]|['.-]\w|\. [A-Z]\.)"
    # "A bank" has the article, "A is right" has the letter.
    r"(?!(?<=A) (?!(?:is|was|and|or|nor|seems|sounds|fits|makes|would|can|cannot|has|best|because|since|it|matches)\b)[a-z])"
)
# Words before a capital that make it something else than a choice: "vitamin C".
_NOT_A_CHOICE = re.compile(
    r"\b(?:vitamin|plan|hepatitis|grade|type|section|class|team|exhibit|part|point|side|note)\s\Z",
    re.IGNORECASE,
)
_FILLER = r"(?:(?:be|the|an?|options?|choices?|answers?|letters?|both|either|most likely|probably|clearly|obviously|definitely|likely|indeed|just|to)\b|[\s:,*_\"'$]){0,12}\Z"
_DOWN_BEFORE = re.compile(
    r"(?:\b(?:not|neither|nor|no|never|cannot|than|instead of|besides|unlike|over|against"
    r"|eliminat\w{1,4}|rul(?:e|ed|es|ing) out|exclud\w{1,4}|dismiss\w{0,4}|discard\w{0,4}|reject\w{0,4}"
    r"|unlikely)\b|n't\b)" + _FILLER,
    re.IGNORECASE,
)
_CHOSEN_BEFORE = re.compile(
    r"\b(?:choos(?:e|es|ing)|chose|pick(?:s|ed|ing)?|select(?:s|ed|ing)?|go(?:ing)? (?:with|for)|opt(?:ing)? for"
    r"|leav(?:es|ing)(?: (?:us|me))?(?: (?:only|with))?|left (?:is|with)|settle on|conclude|must be|has to be"
    r"|(?:answers?|choice|option|one|it|that) (?:is|would be|should be|will be)|(?:it|that)'s|it'd be)\b"
    + _FILLER,
    re.IGNORECASE,
)
# "(A) is less likely than", "all options except".
_SINGLED_OUT_BEFORE = re.compile(
    r"\b(?:less (?:[\w-]{1,20} ){1,3}than|except(?: for)?|(?:all|none|nothing) but)\b" + _FILLER,
    re.IGNORECASE,
)
# "unlike a library" before "(B)".
_UNLIKE_BEFORE = re.compile(
    r"\b(?:unlike|rather than|instead of)(?: [\w'-]{1,20}){1,4} \Z", re.IGNORECASE
)
_THEN_BEFORE = re.compile(
    r"(?:\b(?:so|therefore|thus|hence|only|is|answer|choice|option|pick|likely|best)\b|->|=>|\u2192)"
    + _FILLER,
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"(?P<down>\b(?:no|not|never|wrong|incorrect|unlikely|false|eliminated|ruled out|excluded|dismissed"
    r"|rejected|irrelevant|unrelated|implausible|illogical|inappropriate|unsuitable|less|cannot|neither"
    r"|hardly|fails?|lacks?|too|(?:is|are) out)\b|n't\b|[\u2717\u2718\u274c])"
    r"|(?P<chosen>\b(?:yes|correct|right|best|answer|most|only|fits?|suits?|makes (?:more |perfect )?sense"
    r"|works?|likely|suitable|appropriate|logical|reasonable|plausible|chosen|better|it)\b"
    r"|[\u2713\u2714\u2705])",
    re.IGNORECASE,
)
# What ends the words that are about a mention.
_END = re.compile(
    r"[.;!?](?=\s|\Z)|\n|(?:, as|\b(?:because|since|so|therefore|thus|hence|which|while|whereas))\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|\n")
_JOINED = re.compile(
    r"([^.;:!?\n()]{0,40}?),?\s*(?:,|\b(?:and|or|nor)\b|&|/)\s*(?:(?:the|options?|choices?)\s)?"
)
_LISTED = re.compile(r"(?:\A|(?<=[\s,;]))\(?(?P<letter>[A-J])(?:[).:]|\)\.)\s{1,3}")
_ARTICLE = re.compile(r"(?:an?|the|to) ")


@dataclasses.dataclass(frozen=True)
class _Mention:
    letter: str
    start: int
    end: int


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
    if region.announced:
        sentence = _SENTENCE_END.split(region.text.lstrip(_MARKS), maxsplit=1)[0]
        found = (
            letter
            or _starts_with(line, choices)
            or _taken(sentence, _letters(sentence))
            or _taken(sentence, _texts(sentence, choices))
            or _taken(region.text, _letters(region.text), chosen_only=True)
        )
        return found or normalize(line) or None
    mentions = _letters(region.text)
    if letter and {mention.letter for mention in mentions} <= {letter}:
        return letter
    if found := _taken(region.text, mentions, choices):
        return found
    if letter and not mentions:
        return letter
    if (found := _starts_with(line, choices)) and normalize(line) == choices[found]:
        return found
    if found := _taken_by_text(region.text, choices):
        return found
    # A rationale of several lines that neither names a letter nor announces an answer has none.
    return None if "\n" in region.text.strip() else normalize(line) or None


def parse(text: str, choices: Mapping[str, str]) -> str | None:
    """Returns the letter of a gold answer, "B", "(B) library" or, if listed, "library"."""
    text = plain(text).strip()
    start = _LETTER_FIRST.match(text)
    if start and (len(text) <= MAX_TEXT and "\n" not in text):
        letter = next(name for name in start.groups() if name).upper()
        return letter if not choices or letter in choices else None
    return next((name for name, choice in choices.items() if choice == normalize(text)), None)


def text_of(region: Region) -> str:
    """Returns the text of a choice without its letter and article, up to the end of its clause."""
    line = first_line(region.text)
    start = _LETTER_FIRST.match(line)
    line = line[start.end() :] if start else line
    line = re.split(
        r"[.,;:!?(](?=\s|\Z|[A-Z])|\s(?:because|since|as)\s", line.strip(_MARKS + ".)(-")
    )[0]
    return without_article(normalize(line))


def normalize(text: str) -> str:
    """Returns `text` lowercased, with single spaces and no surrounding punctuation."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"^[\W_]+|[\W_]+$", "", text)


def without_article(text: str) -> str:
    """Returns normalized text without its first word if that is an article."""
    return _ARTICLE.sub("", text, count=1) if _ARTICLE.match(text) else text


def first_line(text: str) -> str:
    r"""Returns the first line with more than marks on it, without \text{}, at most a choice long."""
    line = text.lstrip(_MARKS).partition("\n")[0][:MAX_TEXT]
    return re.sub(r"\\(?:text(?:bf|it)?|mathrm|mathbf) ?\{([^{}]*)\}?", r"\1", line)


def _letters(text: str) -> list[_Mention]:
    mentions = []
    for match in _MENTION.finditer(text):
        if match["bare"] and _NOT_A_CHOICE.search(text[max(0, match.start() - 12) : match.start()]):
            continue
        letter = next(name for name in match.groups() if name).upper()
        mentions.append(_Mention(letter, *match.span()))
    return mentions[-_MAX_MENTIONS:]


def _texts(text: str, choices: Mapping[str, str]) -> list[_Mention]:
    """Returns where the texts of choices are mentioned, the longest of those at one place."""
    names = {choice: letter for letter, choice in choices.items() if choice}
    if not names:
        return []
    longest = sorted(names, key=len, reverse=True)
    pattern = rf"(?<!\w)({'|'.join(map(re.escape, longest))})(?:e?s)?(?!\w)"
    mentions = [
        _Mention(names[match[1].lower()], *match.span())
        for match in re.finditer(pattern, text, re.IGNORECASE)
        if match[1].lower() in names
    ]
    return mentions[-_MAX_MENTIONS:]


def _starts_with(line: str, choices: Mapping[str, str]) -> str | None:
    """Returns the choice whose text a line starts with, after an article."""
    mentions = _texts(line, choices)
    if mentions and not without_article(normalize(line[: mentions[0].start]) + " ").strip():
        return mentions[0].letter
    return None


def _taken_by_text(text: str, choices: Mapping[str, str]) -> str | None:
    """Returns the choice that a text takes by its words: said to be, or alone in the last sentence."""
    mentions = _texts(text, choices)
    if found := _taken(text, mentions, chosen_only=True):
        return found
    stops = [match.end() for match in _SENTENCE_END.finditer(text.rstrip())]
    last = max((stop for stop in stops if stop < len(text.rstrip())), default=0)
    for part in ([m for m in mentions if m.start >= last], mentions):
        letters = {mention.letter for mention in part}
        if len(letters) == 1:
            return letters.pop()
    return None


def _taken(
    text: str,
    mentions: Sequence[_Mention],
    choices: Mapping[str, str] | None = None,
    *,
    chosen_only: bool = False,
) -> str | None:
    """Returns the letter that a text takes out of those that it mentions, or None."""
    verdicts = _verdicts(text, mentions)
    open_ = None
    down: set[str] = set()
    for mention, verdict in zip(reversed(mentions), reversed(verdicts), strict=True):
        if verdict == "chosen" and mention.letter not in down:
            return mention.letter
        if verdict == "down":
            down.add(mention.letter)
        elif verdict is None:
            open_ = open_ or mention.letter
    if chosen_only:
        return None
    neither = [mention.letter for mention in mentions if mention.letter not in down]
    if neither:
        return neither[-1]
    left = [letter for letter in choices or () if letter not in down]
    return left[0] if len(left) == 1 and down else None


def _verdicts(text: str, mentions: Sequence[_Mention]) -> list[str | None]:
    """Returns for each mention "chosen", "down" or None."""
    verdicts: list[str | None] = []
    bounds = [0, *(mention.end for mention in mentions)]
    following = [mention.start for mention in mentions[1:]] + [min(len(text), bounds[-1] + 200)]
    for mention, before, after in zip(mentions, bounds, following, strict=False):
        left = text[max(before, mention.start - 60) : mention.start]
        left = _SENTENCE_END.split(left)[-1]
        right = text[mention.end : min(after, mention.end + 200)]
        if end := _END.search(right):
            right = right[: end.start()]
        elif before_next := _DOWN_BEFORE.search(right):
            right = right[: before_next.start()]
        verdicts.append(_verdict(left, right))
    # "A, B and D are wrong", "not A or B": what is said of one is said of all.
    groups = [0] * bool(mentions)
    for a, b in itertools.pairwise(mentions):
        joined = _JOINED.fullmatch(text, a.end, b.start)
        groups.append(groups[-1] + (joined is None or _AFTER.search(joined[1]) is not None))
    said: dict[int, set[str]] = collections.defaultdict(set)
    for group, verdict in zip(groups, verdicts, strict=True):
        if verdict:
            said[group].add(verdict)
    return [max(said[group], default=None) for group in groups]  # "down" before "chosen".


def _verdict(left: str, right: str) -> str | None:
    if _SINGLED_OUT_BEFORE.search(left):
        return "chosen"
    if _DOWN_BEFORE.search(left) or _UNLIKE_BEFORE.search(left):
        return "down"
    if _CHOSEN_BEFORE.search(left):
        return "chosen"
    if said := _AFTER.search(right):
        return said.lastgroup
    return "chosen" if _THEN_BEFORE.search(left) else None
