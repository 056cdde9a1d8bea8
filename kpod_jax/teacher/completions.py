"""Reading a chat completion, whoever sent it, and cutting its text into rationale and answer."""

import dataclasses
import math
import re
from typing import Any

from kpod_jax.data import answers

# The sentence that announces the answer, from its first word on.
_ANNOUNCED = re.compile(
    r"[*_]{0,3}(?:\b(?:therefore|thus|so|hence),?\s{1,3})?"
    r"\bthe\s{1,3}(?:(?:final|correct|right|best)\s{1,3})?answer\s{1,3}is\b",
    re.IGNORECASE,
)
# A line that does: "#### 7", "**Answer:** 7", "Final answer: 7".
_LABELLED = re.compile(
    r"^[^\w\n]{0,8}(?:####|(?:final\s{1,3})?answer[ *_]{0,3}:)", re.IGNORECASE | re.MULTILINE
)


@dataclasses.dataclass(frozen=True)
class Judged:
    """What a text is worth.

    Attributes:
      rationale: the text before its answer; empty where there is none.
      extracted: the answer that it gives, written canonically, or None.
      correct: whether that is the data set's.
      reason: why it is not kept; empty if it is.
    """

    rationale: str
    extracted: str | None
    correct: bool
    reason: str


def read_completion(body: Any) -> dict[str, Any]:
    """Text, tokens and model of a response's JSON; it may be anything.

    Returns:
      `text`; `finish`, the endpoint's reason to stop; `prompt_tokens` and `completion_tokens`, None
      where they are not told; `model`; and `error`, which says why there is no text, or None.
      Where the endpoint gives them, `logprobs`: each token and the log probabilities of tokens that
      could have stood there, itself among them.
    """
    body = _object(body)
    usage, choices = _object(body.get("usage")), body.get("choices")
    first = _object(choices[0] if isinstance(choices, list) and choices else None)
    message = _object(first.get("message"))
    text, finish = message.get("content"), first.get("finish_reason")
    error = None
    if not first:
        error = "the response has no choices"
    elif not isinstance(text, str) or not text.strip():
        error = f"the response has no text (finish_reason {clean(finish, 40)})"
    distributions = _logprobs(_object(first.get("logprobs")).get("content"))
    return {
        "text": _utf8(text.strip()) if isinstance(text, str) else "",
        "finish": clean(finish, 40) if isinstance(finish, str) else None,
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "completion_tokens": _count(usage.get("completion_tokens")),
        "model": clean(body.get("model"), 200) if isinstance(body.get("model"), str) else None,
        "error": error,
    } | ({"logprobs": distributions} if distributions and error is None else {})


def _logprobs(content: Any) -> list[tuple[str, dict[str, float]]]:
    """Tokens and distributions of a response; [] where any of them is not as it should be."""
    found = []
    for entry in map(_object, content if isinstance(content, list) else []):
        others, top = entry.get("top_logprobs"), {}
        for one in (*map(_object, others if isinstance(others, list) else []), entry):
            token, logprob = one.get("token"), one.get("logprob")
            if not isinstance(token, str) or not isinstance(logprob, int | float):
                return []
            if math.isfinite(logprob):
                top[_utf8(token)] = min(0.0, float(logprob))
        found.append((_utf8(entry["token"]), top))
    return found


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def clean(value: object, limit: int = 300) -> str:
    """A foreign text on one short line, without what could change a terminal or break UTF-8."""
    text = str(value)[: 4 * limit]
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[:limit] + "…"


def judge(text: str, finish: str | None, gold: str, kind: str, keep: str = "right") -> Judged:
    """Cuts a teacher's text before the sentence that announces the answer, and judges the answer.

    What follows the answer is dropped with it: a student's targets end with their own sentence.

    Args:
      text: as it was received.
      finish: the endpoint's reason to stop; "length" is a text that was cut off.
      gold: the data set's answer.
      kind: of `answers.KINDS`.
      keep: "right" or "all".
    """
    found = list(_ANNOUNCED.finditer(text)) or list(_LABELLED.finditer(text))
    cut = finish == "length" and not found  # Its last number is no answer.
    extracted = None if cut else answers.extract_answer(text, kind)
    correct = not cut and answers.answers_equal(text, gold, kind)
    rationale = (text[: found[-1].start()] if found else text).strip()
    reason = ""
    if cut:
        reason = "the text was cut off before its answer; raise teacher.max_tokens"
    elif extracted is None and keep == "right":
        reason = "the text gives no answer"
    elif not correct and keep == "right":
        reason = f"its answer is {extracted}, the data set's is {gold}"
    elif not rationale:
        reason = "there is no rationale before the answer"
    return Judged(rationale, extracted, correct, reason)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
