r"""Reads, checks and compares answers of all kinds.

Answers are read with regular expressions and `fractions.Fraction`: nothing is evaluated, and the
time is linear in the length of the text. `announcements` finds where the answer is; `numbers`,
`choices` and `mathematics` read it.
"""

import functools
import re
from collections.abc import Callable, Sequence

from kpod_jax.data import announcements, choices, mathematics, numbers
from kpod_jax.data.announcements import Region
from kpod_jax.utils import plugins
from kpod_jax.utils.errors import UserError, one_of

KINDS = ("number", "choice", "yes_no", "text", "math")

_EXPECTED = {
    "number": "a number such as 72, $1,200, 3/4 or '12 apples'",
    "choice": "a letter, as A or '(A) bank'",
    "yes_no": "yes, no, true or false",
    "text": f"one line of at most {choices.MAX_TEXT} characters",
    "math": r"an expression such as 72, \frac{1}{2} or x^2 + 1",
}
# "no cars" says nothing; "not true" is no.
_YES_NO = re.compile(
    r"\b(?P<negated>not |n't )?(?:(?P<yes>yes|true)|(?P<no>no(?! \w)|false))\b", re.IGNORECASE
)
_ANNOUNCED_YES_NO = re.compile(
    r"\b(?P<negated>not )?(?:(?P<yes>yes|true)|(?P<no>no|false))\b", re.I
)
# The end of a sentence, but not of "St. Louis" or "J. K. Rowling".
_SENTENCE_END = re.compile(r"(?<=[^\W_]{3})[.!?](?=\s|\Z)|(?<=[0-9)\"'])[.!?](?=\s|\Z)")


def extract_answer(text: str, kind: str = "number", question: str = "") -> str | None:
    r"""Returns the final answer in a generation, in canonical form.

    The answer is read after the last announcement: "the answer is" (any case; also "the final
    answer is", "my answer would be"), "final answer:", `####`, `\boxed{}` or `<answer>`; if there
    is none, after the last "answer:", else from the whole text. A text that announces an answer
    but gives none has no answer: text before the announcement is never searched.

    Args:
      text: any text, including adversarial text.
      kind: one of KINDS, or package.module:function.
        "number": `1234.5` for "$1,234.50", `-3`, `1/2` for "2/4" and "\frac{1}{2}", `5/2` for
          "2 1/2", `3` for "3.0", `1200000` for "$1.2 million". Units, "%" and periods are dropped:
          "50%" is `50`. Which of several numbers wins: docs/evaluation.md.
        "choice": the letter if there is one, else the lowercase text without surrounding
          punctuation.
        "yes_no": `yes` or `no`; "true" and "false" count as yes and no.
        "text": the announced sentence or, if the text is one line, all of it, in lowercase,
          without surrounding punctuation and without a leading article.
        "math": the expression as it is written, without dollars.
        package.module:function: as for "text"; without an announcement, the whole text.
      question: the question. If it lists choices, "Where? (A) bank (B) library", the text of one
        counts as its letter.

    Returns:
      The canonical text, or None if there is no answer. Canonical numbers, letters, "yes" and
      "no" are returned unchanged.

    Raises:
      UserError: the kind is unknown, or its package is not installed.
    """
    _check(kind)
    region = announcements.find(text)
    if kind == "number":
        number = numbers.read(region)
        return None if number is None else number.text
    if kind == "choice":
        return choices.read(region, choices.listed(question))
    if kind == "yes_no":
        return _yes_no(region)
    if kind == "math":
        return mathematics.read(region)
    if plugins.is_path(kind) and not region.announced:
        return text.strip() or None
    return _text(region)


def answers_equal(a: str | None, b: str | None, kind: str = "number", question: str = "") -> bool:
    r"""Returns whether two answers, canonical or not, are equal.

    Args:
      a: a text with an answer, such as a generation.
      b: the gold answer, or another text.
      kind: one of KINDS, or package.module:function.
        "number": compared exactly, as fractions: "0.5", "1/2" and "2/4" are equal, "0.33" and
          "1/3" are not. If the question counts in dozens or millions, "3 dozen" is also 3.
        "choice": compared by letter if both have one, else by text.
        "text": the canonical texts are the same.
        "math": math-verify finds them equal: `\frac{1}{2}` and 0.5, not `3\pi` and 3.
        package.module:function: function(a, b) is true; `a` is the whole text as it was generated.
      question: the question, which may list the choices.

    Returns:
      Whether they are equal. An answer that is None or cannot be parsed equals nothing.

    Raises:
      UserError: the kind is unknown, or its package is not installed.
    """
    _check(kind)
    if a is None or b is None:
        return False
    if plugins.is_path(kind):
        return _judged(kind, a, b)
    if kind == "number":
        return not _values(a, question).isdisjoint(_values(b, question))
    left = extract_answer(a, kind, question)
    right = _parse(b, kind, question) or extract_answer(b, kind, question)
    if left is None or right is None:
        return False
    if kind == "math":
        return mathematics.equal(left, right)
    if kind == "choice" and left.isupper() != right.isupper():
        # Only letters are canonically uppercase, so one side has a letter: "(B) bank" and "bank".
        left, right = (choices.text_of(announcements.find(answer)) for answer in (a, b))
        return left == right and left != ""
    if kind == "choice" and not left.isupper():
        texts = [choices.text_of(announcements.find(answer)) for answer in (a, b)]
        return left == right or texts[0] == texts[1] != ""
    return left == right


def parse_gold(text: str, kind: str = "number", question: str = "") -> str:
    """Checks a data set's gold answer and returns it in canonical form.

    The whole text must be an answer of the kind: a number with an optional currency, unit or
    percent sign; a letter, with or without the text of its choice, or the text of a choice that
    the question lists; yes, no, true or false; one line of text; an expression that math-verify
    reads. For a judge of one's own, any text.

    Args:
      text: the answer as it is written in the data.
      kind: one of KINDS, or package.module:function.
      question: its question, which may list the choices, "Where? (A) bank (B) library".

    Raises:
      ValueError: it is none; the message continues "line 3", as in "has the answer 'Paris', which
        is not a number; ...".
      UserError: the kind is unknown, or its package is not installed.
    """
    _check(kind)
    gold = _parse(text, kind, question)
    if gold is None:
        name = {"yes_no": "yes or no", "math": "a mathematical expression"}.get(kind, f"a {kind}")
        raise ValueError(
            f"has the answer {text.strip()!r:.80}, which is not {name}; expected "
            f"{_EXPECTED.get(kind, 'a text')}, or set --config.data.answer_kind to the kind of "
            "the answers"
        )
    return gold


def by_value(extracted: Sequence[str | None], kind: str = "number") -> list[str | None]:
    """Returns answers with equal ones written alike, as the first of them is.

    Args:
      extracted: answers from `extract_answer`, such as those of several samples.
      kind: one of KINDS, or package.module:function, whose answers are compared as text.
    """
    found: list[str] = []
    result: list[str | None] = []
    for answer in extracted:
        if answer is None:
            result.append(None)
            continue
        same = next((other for other in found if _same(answer, other, kind)), None)
        if same is None:
            found.append(answer)
        result.append(same or answer)
    return result


@functools.cache
def load_judge(name: str) -> Callable[[str, str], bool]:
    """Imports the judge that `data.answer_kind` names, function(prediction, gold) -> bool.

    Raises:
      UserError: it cannot be imported or called.
    """
    judge: Callable[[str, str], bool] = plugins.load(name, "data.answer_kind")
    if not callable(judge):
        raise UserError(
            f"data.answer_kind={name!r} is not a function; expected function(prediction, gold), "
            "which returns whether the prediction's answer is the gold answer."
        )
    return judge


def _check(kind: str) -> None:
    if kind not in KINDS and not plugins.is_path(kind):
        raise UserError(
            f"Unknown answer kind {kind!r}; {one_of(kind, KINDS, 'package.module:function')}. "
            "Set the data set's answer kind to one of these."
        )
    if kind == "math":
        mathematics.require()


def _judged(name: str, prediction: str, gold: str) -> bool:
    try:
        return bool(load_judge(name)(prediction, gold))
    except UserError:
        raise
    except Exception as error:  # Anything may be wrong in code that is not ours.
        raise UserError(
            f"data.answer_kind={name!r} failed on the prediction {prediction!r:.80} and the gold "
            f"answer {gold!r:.80}: {type(error).__name__}: {error}."
        ) from error


def _parse(text: str, kind: str, question: str) -> str | None:
    """Returns the canonical form of a text that is nothing but an answer, else None."""
    if kind == "number":
        number = numbers.parse(text)
        return None if number is None else number.text
    if kind == "choice":
        return choices.parse(text, choices.listed(question))
    if kind == "yes_no":
        match = _ANNOUNCED_YES_NO.fullmatch(text.strip().rstrip("."))
        return None if match is None else _said(match)
    if kind == "math":
        return mathematics.parse(announcements.plain(text))
    if plugins.is_path(kind):
        return text.strip() or None
    text = text.strip()
    if "\n" in text or len(text) > choices.MAX_TEXT:
        return None
    return _normalize(text) or None


def _values(text: str, question: str) -> set[object]:
    number = numbers.parse(text) or numbers.read(announcements.find(text))
    if number is None:
        return set()
    values: set[object] = {numbers.value(number.text)}
    if number.scaled and re.search(rf"(?:\b|[0-9]){number.scaled}s?\b", question):
        values.add(numbers.value(number.unscaled))
    return values


def _same(a: str, b: str, kind: str) -> bool:
    if a == b:
        return True
    if kind == "number":
        return numbers.value(a) == numbers.value(b)
    return answers_equal(a, b, kind) if kind in ("choice", "math") else False


def _yes_no(region: Region) -> str | None:
    if region.announced:
        match = _ANNOUNCED_YES_NO.search(region.text)
    else:
        match = announcements.last_match(_YES_NO, region.text)
    return None if match is None else _said(match)


def _said(match: re.Match[str]) -> str:
    return "yes" if (match["yes"] is None) == bool(match["negated"]) else "no"


def _text(region: Region) -> str | None:
    if not region.announced and "\n" in region.text.strip():
        return None  # A rationale that announces no answer.
    line = choices.first_line(region.text)
    return (
        _normalize(_SENTENCE_END.split(line, maxsplit=1)[0] if region.announced else line) or None
    )


def _normalize(text: str) -> str:
    return choices.without_article(choices.normalize(announcements.plain(text)))
