"""Separates a worked solution into its rationale and its final answer."""

import re

from kpod_jax.data import announcements, answers
from kpod_jax.data.thoughts import split_thought

# GSM8K's calculator annotations.
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")
# Bespoke's and OpenThoughts' tags of a thought and of what follows it.
_OTHER_TAGS = {
    "<|begin_of_thought|>": "<think>",
    "<|end_of_thought|>": "</think>",
    "<|begin_of_solution|>": "",
    "<|end_of_solution|>": "",
}
_TAGGED = re.compile(r"<answer>([^<]*+)</answer>", re.IGNORECASE)
_BOX = re.compile(r"\\f?box(?:ed)?\s?\{")
_LEAD = (
    r"(?:(?:therefore|thus|hence|so|then|and|finally|in conclusion|as a result)\b[,:]?\s{0,3}){0,3}"
)
_NAME = (
    r"\b(?:(?:the|our|my)\s{1,3})?(?:(?:final|correct|right|best|numerical)\s{1,3})?answer"
    r"(?:\s{1,3}to (?:the|this) (?:question|problem))?"
)
_STATED = re.compile(rf"{_NAME}[*_]{{0,3}}\s{{0,3}}(?:is\b\s{{0,3}}:?|[:=])", re.IGNORECASE)
# A sentence that states the answer alone, without markup; also a heading and the line below it.
_STATEMENT = re.compile(
    rf"#{{0,3}}\s?{_LEAD}{_NAME}\s?(?:is\b|equals\b)?\s?[:=]?\s(?P<answer>.+)",
    re.IGNORECASE | re.DOTALL,
)
_HEADING = re.compile(r"#{0,6}\s?(?:final\s)?(?:answer|solution)\s?:?", re.IGNORECASE)
_CLAUSE = re.compile(r"[,;]?\s(?=(?:so|and|therefore|thus|hence),? the (?:final )?answer is\b)")
_SENTENCE_END = re.compile(r"[.!?。]['\")*_]{0,3}\s")
_MARKUP = re.compile(r"\\[()\[\]]|\$|[*_`]{1,3}")
# Longer texts state more than an answer.
_MAX_SENTENCE = 300
# As many sentences that state the answer are cut off at most.
_MAX_REPEATS = 4
_REASON = re.compile(r"=|\b(?:because|since|as)\b", re.IGNORECASE)


def split_solution(text: str, kind: str) -> tuple[str, str]:
    r"""Splits a solution into its rationale and its answer.

    The answer is inside the last `<answer>`, after the last `####`, inside the last `\boxed{}`, or
    after the last "the answer is" or "answer:". It may also be the whole text, or all that follows
    a thought (`<think>…</think>`). One that is not of its kind as it stands is made canonical.

    Returns:
      The rationale, as `rationale_of`, and the answer, or "" if there is none.
    """
    _, rest = _split_thought(text)
    stated = stated_answer(rest)
    if stated and not _is_gold(stated, kind):
        stated = answers.extract_answer(stated, kind) or stated
    stated = stated or plain_answer(rest, kind)
    return rationale_of(text, stated, kind), stated


def rationale_of(text: str, answer: str, kind: str) -> str:
    """Returns the rationale of a solution with a known answer; it may be empty.

    That is its thought, if it has one, else the text; in either case without the final sentences
    that only state the answer, and without GSM8K's calculator annotations if it ends with `####`.
    """
    thought, rest = _split_thought(text)
    if "####" in rest:
        rest = _ANNOTATION.sub("", rest)
    rationale = thought or rest
    if not answer:
        return rationale
    is_answer = _is_gold(_unmarked(rationale), kind) and answers.answers_equal(
        _unmarked(rationale), answer, kind
    )
    return "" if is_answer else _without_answer(rationale, answer, kind)


def without_answer(rationale: str, answer: str, kind: str) -> str:
    r"""Returns a rationale without the final sentences that only state its answer.

    Such as "The answer is 5.", "#### 5", `\boxed{5}` or "**Final answer:** 5"; one that consists of
    them alone is returned as it is.
    """
    return _without_answer(rationale, answer, kind) or rationale


def plain_answer(text: str, kind: str) -> str:
    """Returns a text that is an answer of its kind, without markup, else ""."""
    return next((answer for answer in (_unmarked(text), text) if _is_gold(answer, kind)), "")


def stated_answer(text: str) -> str:
    """Returns the answer that a text announces, without markup, or ""."""
    if tagged := _TAGGED.findall(text):
        return _unmarked(tagged[-1])
    if "####" in text:
        return _unmarked(text.rpartition("####")[2].strip().partition("\n")[0])
    if boxes := list(_BOX.finditer(text)):
        return _unmarked(announcements.until_closing_brace(text[boxes[-1].end() :]))
    if places := list(_STATED.finditer(text)):
        after = text[places[-1].end() :].lstrip(" \n*_:")
        return _unmarked(re.split(r"[.!?](?:\s|$)|\n", after, maxsplit=1)[0])
    return ""


def _split_thought(text: str) -> tuple[str, str]:
    for tag, other in _OTHER_TAGS.items():
        text = text.replace(tag, other)
    return split_thought(text)


def _without_answer(text: str, answer: str, kind: str) -> str:
    for _ in range(_MAX_REPEATS):
        text = text.rstrip()
        for start in _last_starts(text):
            if _states(text[start:], answer, kind):
                kept = text[:start].rstrip()
                break
        else:
            return text
        head, _, last = kept.rpartition("\n")
        if len(last) < _MAX_SENTENCE and _HEADING.fullmatch(_plain(last)):
            kept = head
        text = kept[:-1] + "." if kept.endswith((",", ";")) else kept
    return text


def _last_starts(text: str) -> list[int]:
    """Returns where the last lines, sentence and mark of an answer begin, the longest first."""
    low = max(0, len(text) - _MAX_SENTENCE)
    end = text[low:]  # Earlier starts are too far from the end.
    last = end.rfind("\n") + 1
    previous = end[:last].rstrip()
    starts = {last, previous.rfind("\n") + 1, end.rfind("####"), end.lower().rfind("<answer>")}
    for pattern in (_SENTENCE_END, _CLAUSE):
        starts |= {match.end() for match in pattern.finditer(end, last)}
    # A window that begins within a line has no start there.
    least = 1 if low else 0
    return sorted(low + start for start in starts if least <= start < len(end))


def _states(sentence: str, answer: str, kind: str) -> bool:
    """Returns whether a sentence states the answer and nothing else."""
    plain = _plain(sentence)
    if tagged := _TAGGED.fullmatch(plain):
        stated = tagged[1]
    elif plain.startswith("####"):
        stated = plain[4:]
    elif match := _STATEMENT.fullmatch(plain):
        stated = match["answer"]
    elif box := _BOX.match(plain):
        inner = announcements.until_closing_brace(plain[box.end() :])
        stated = inner if not plain[box.end() + len(inner) + 1 :].strip(" .") else ""
    else:
        return False
    stated = _unmarked(stated)
    return (
        not _REASON.search(stated)
        and _is_gold(stated, kind)
        and answers.answers_equal(stated, answer, kind)
    )


def _plain(text: str) -> str:
    return " ".join(_MARKUP.sub("", text).split())


def _unmarked(text: str) -> str:
    """Returns an answer without the markup and the period around it."""
    text = text.strip()
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1]
    text = text.strip(" \n*_`")
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(left) and text.endswith(right) and len(text) > len(left + right):
            text = text[len(left) : -len(right)].strip()
    text = text.removesuffix(".") if not text.endswith("..") else text
    if (box := re.match(r"\\(?:f?box(?:ed)?|text|textbf|mathrm) ?\{", text)) and text[-1] == "}":
        inner = announcements.until_closing_brace(text[box.end() :])
        if box.end() + len(inner) == len(text) - 1:
            return _unmarked(inner)
    return text


def _is_gold(text: str, kind: str) -> bool:
    try:
        answers.parse_gold(text, kind)
    except ValueError:
        return False
    return bool(text)
