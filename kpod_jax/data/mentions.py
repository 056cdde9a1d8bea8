"""Tells which of the choices that a text mentions it takes, by the words around each mention."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

# Longer texts are judged by their end, where the answer is.
_MAX_MENTIONS = 200

_LETTER = re.compile(
    r"(?:\b(?i:option|choice|letter)\s{1,3})?[(\[]\s?(?P<bracketed>[A-Ja-j])\s?[)\]]"
    r"|\b(?i:option|choice|letter)\s{1,3}[\"']?(?P<named>[A-Ja-j])\b(?!['-]\w)"
    r"|(?<![\w'.&-])(?P<bare>[A-HJ])(?![\w&+#]|['.-]\w|\. [A-Z]\.)"
    # "A bank" has the article, "A is right" has the letter.
    r"(?!(?<=A) (?!(?:is|was|and|or|nor|seems|sounds|fits|makes|would|can|cannot|has|best"
    r"|because|since|it|matches)\b)[a-z])"
)
# Words before a capital that make it something else than a choice: "vitamin C".
_NOT_A_CHOICE = re.compile(
    r"\b(?:vitamin|plan|hepatitis|grade|type|section|class|team|exhibit|part|point|side|note)\s\Z",
    re.IGNORECASE,
)

# Words between what is said of a choice and the choice.
_FILLER = (
    r"(?:(?:be|the|an?|options?|choices?|answers?|letters?|both|either|most likely|probably"
    r"|clearly|obviously|definitely|likely|indeed|just|to)\b|[\s:,*_\"'$]){0,12}\Z"
)
# "(A) is less likely than", "all options except".
_SINGLED_OUT_BEFORE = re.compile(
    r"\b(?:less (?:[\w-]{1,20} ){1,3}than|except(?: for)?|(?:all|none|nothing) but)\b" + _FILLER,
    re.IGNORECASE,
)
_DOWN_BEFORE = re.compile(
    r"(?:\b(?:not|neither|nor|no|never|cannot|than|instead of|besides|unlike|over|against"
    r"|eliminat\w{1,4}|rul(?:e|ed|es|ing) out|exclud\w{1,4}|dismiss\w{0,4}|discard\w{0,4}"
    r"|reject\w{0,4}|unlikely)\b|n't\b)" + _FILLER,
    re.IGNORECASE,
)
# "unlike a library" before "(B)".
_UNLIKE_BEFORE = re.compile(
    r"\b(?:unlike|rather than|instead of)(?: [\w'-]{1,20}){1,4} \Z", re.IGNORECASE
)
_CHOSEN_BEFORE = re.compile(
    r"\b(?:choos(?:e|es|ing)|chose|pick(?:s|ed|ing)?|select(?:s|ed|ing)?|go(?:ing)? (?:with|for)"
    r"|opt(?:ing)? for|leav(?:es|ing)(?: (?:us|me))?(?: (?:only|with))?|left (?:is|with)"
    r"|settled? on|conclude|must be|has to be"
    r"|(?:answers?|choice|option|one|it|that) (?:is|would be|should be|will be)"
    r"|(?:it|that)'s|it'd be)\b" + _FILLER,
    re.IGNORECASE,
)
_THEN_BEFORE = re.compile(
    r"(?:\b(?:so|therefore|thus|hence|only|is|answer|choice|option|pick|likely|best)\b"
    r"|->|=>|\u2192)" + _FILLER,
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"(?P<down>\b(?:no|not|never|wrong|incorrect|unlikely|false|eliminated|ruled out|excluded"
    r"|dismissed|rejected|irrelevant|unrelated|implausible|illogical|inappropriate|unsuitable"
    r"|less|cannot|neither|hardly|fails?|lacks?|too|(?:is|are) out)\b|n't\b|[\u2717\u2718\u274c])"
    r"|(?P<chosen>\b(?:yes|correct|right|best|answer|most|only|fits?|suits?"
    r"|makes (?:more |perfect )?sense|works?|likely|suitable|appropriate|logical|reasonable"
    r"|plausible|chosen|better|it)\b|[\u2713\u2714\u2705])",
    re.IGNORECASE,
)
# What ends the words that are about a mention.
_END = re.compile(
    r"[.;!?](?=\s|\Z)|\n"
    r"|(?:, as|\b(?:because|since|so|therefore|thus|hence|which|while|whereas))\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|\n")
_JOINED = re.compile(
    r"([^.;:!?\n()]{0,40}?),?\s*(?:,|\b(?:and|or|nor)\b|&|/)\s*(?:(?:the|options?|choices?)\s)?"
)


@dataclasses.dataclass(frozen=True)
class Mention:
    """A place [start, end) of a text that names a choice."""

    letter: str
    start: int
    end: int


def of_letters(text: str) -> list[Mention]:
    """Returns where a text names choices by letter: "(B)", "option b", "B", but not "A bank"."""
    mentions = []
    for match in _LETTER.finditer(text):
        if match["bare"] and _NOT_A_CHOICE.search(text[max(0, match.start() - 12) : match.start()]):
            continue
        letter = next(name for name in match.groups() if name).upper()
        mentions.append(Mention(letter, *match.span()))
    return mentions[-_MAX_MENTIONS:]


def of_texts(text: str, choices: Mapping[str, str]) -> list[Mention]:
    """Returns where the texts of choices stand, the longest of those at one place.

    Args:
      text: any text.
      choices: lowercase text of each choice by letter.
    """
    names = {choice: letter for letter, choice in choices.items() if choice}
    if not names:
        return []
    longest = sorted(names, key=len, reverse=True)
    pattern = rf"(?<!\w)({'|'.join(map(re.escape, longest))})(?:e?s)?(?!\w)"
    mentions = [
        Mention(names[match[1].lower()], *match.span())
        for match in re.finditer(pattern, text, re.IGNORECASE)
        if match[1].lower() in names
    ]
    return mentions[-_MAX_MENTIONS:]


def taken(
    text: str,
    mentions: Sequence[Mention],
    choices: Iterable[str] = (),
    *,
    chosen_only: bool = False,
) -> str | None:
    """Returns the letter that a text takes out of those that it mentions.

    Args:
      text: the text.
      mentions: its mentions, in order.
      choices: all letters, if they are known: if all but one are turned down, that one is taken.
      chosen_only: whether only a letter counts that the text says to be the answer.

    Returns:
      The last letter that is said to be the answer and not turned down after that; else the last
      that is not turned down; or None.
    """
    down: set[str] = set()
    for mention, verdict in zip(
        reversed(mentions), reversed(_verdicts(text, mentions)), strict=True
    ):
        if verdict == "chosen" and mention.letter not in down:
            return mention.letter
        if verdict == "down":
            down.add(mention.letter)
    if chosen_only:
        return None
    neither = [mention.letter for mention in mentions if mention.letter not in down]
    if neither:
        return neither[-1]
    left = [letter for letter in choices if letter not in down]
    return left[0] if len(left) == 1 and down else None


def taken_by_text(text: str, choices: Mapping[str, str]) -> str | None:
    """Returns the letter of a choice whose text is said to be it, or alone ends the text."""
    mentions = of_texts(text, choices)
    if found := taken(text, mentions, chosen_only=True):
        return found
    text = text.rstrip()
    stops = [match.end() for match in _SENTENCE_END.finditer(text)]
    last = max((stop for stop in stops if stop < len(text)), default=0)
    for part in ([mention for mention in mentions if mention.start >= last], mentions):
        letters = {mention.letter for mention in part}
        if len(letters) == 1:
            return letters.pop()
    return None


def _verdicts(text: str, mentions: Sequence[Mention]) -> list[str | None]:
    """Returns for each mention "chosen", "down" or None."""
    verdicts: list[str | None] = []
    bounds = [0, *(mention.end for mention in mentions)]
    following = [mention.start for mention in mentions[1:]] + [len(text)]
    for mention, before, after in zip(mentions, bounds, following, strict=False):
        left = _SENTENCE_END.split(text[max(before, mention.start - 60) : mention.start])[-1]
        right = text[mention.end : min(after, mention.end + 200)]
        if end := _END.search(right) or _DOWN_BEFORE.search(right):  # "C, not" is about the next.
            right = right[: end.start()]
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
