"""Parses untrusted chat completions and splits their text into rationale and answer."""

import dataclasses
import math
import re
from typing import Any

from kpod_jax.data import answers

# The beginning of the sentence that announces the answer.
_ANSWER_IS = re.compile(
    r"[*_]{0,3}(?:\b(?:therefore|thus|so|hence),?\s{1,3})?"
    r"\bthe\s{1,3}(?:(?:final|correct|right|best)\s{1,3})?answer\s{1,3}is\b",
    re.IGNORECASE,
)
# The beginning of a line that does: "#### 7", "**Answer:** 7", "Final answer: 7".
_LABELLED = re.compile(
    r"^[^\w\n]{0,8}(?:####|(?:final\s{1,3})?answer[ *_]{0,3}:)", re.IGNORECASE | re.MULTILINE
)


@dataclasses.dataclass(frozen=True)
class Judged:
    """Evaluation of a teacher's text.

    Attributes:
      rationale: the text before the answer, or "".
      extracted: the text's answer in canonical form, or None.
      correct: whether it equals the data set's answer.
      reason: why the text is rejected, or "" if it is kept.
    """

    rationale: str
    extracted: str | None
    correct: bool
    reason: str


def read_completion(body: Any) -> dict[str, Any]:
    """Returns text, token counts and model of a response's JSON, which may be any value.

    Returns:
      `text`; `finish`, the finish reason; `prompt_tokens` and `completion_tokens`, None if not
      reported; `model`; and `error`, the reason why there is no text, or None. If the endpoint
      reports them, also `logprobs`: each token with the log probabilities of the top tokens at its
      position, including itself.
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
    """Returns the tokens of a response and their distributions, or [] if any is malformed."""
    distributions = []
    for entry in map(_object, content if isinstance(content, list) else []):
        alternatives, top = entry.get("top_logprobs"), {}
        alternatives = alternatives if isinstance(alternatives, list) else []
        for item in (*map(_object, alternatives), entry):
            token, logprob = item.get("token"), item.get("logprob")
            if not isinstance(token, str) or not isinstance(logprob, int | float):
                return []
            if math.isfinite(logprob):
                top[_utf8(token)] = min(0.0, float(logprob))
        distributions.append((_utf8(entry["token"]), top))
    return distributions


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def clean(value: object, limit: int = 300) -> str:
    """Returns untrusted text as one short line of printable characters."""
    text = str(value)[: 4 * limit]
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[:limit] + "…"


def judge(text: str, finish: str | None, gold: str, kind: str, keep: str = "right") -> Judged:
    """Evaluates a teacher's answer, and cuts the text before the sentence that announces it.

    Text after the answer is dropped as well: the student's targets add their own answer sentence.

    Args:
      text: text of the completion.
      finish: finish reason; "length" means that the text was cut off.
      gold: the data set's answer.
      kind: one of `answers.KINDS`.
      keep: "right" keeps only correct answers, "all" also wrong and missing ones.
    """
    matches = list(_ANSWER_IS.finditer(text)) or list(_LABELLED.finditer(text))
    truncated = finish == "length" and not matches  # The last number is not the answer.
    extracted = None if truncated else answers.extract_answer(text, kind)
    correct = not truncated and answers.answers_equal(text, gold, kind)
    rationale = (text[: matches[-1].start()] if matches else text).strip()
    reason = ""
    if truncated:
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
