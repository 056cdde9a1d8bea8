"""Parses untrusted chat completions and splits their text into rationale and answer."""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kpod_jax.config.defaults import Config
from kpod_jax.data import answers
from kpod_jax.data.thoughts import split_thought
from kpod_jax.teacher import finish as finish_reasons
from kpod_jax.teacher.failures import find_failure
from kpod_jax.teacher.messages import read_message
from kpod_jax.teacher.questions import Question
from kpod_jax.utils.redaction import redact

# The beginning of the sentence that announces the answer.
_ANSWER_IS = re.compile(
    r"[*_]{0,3}(?:\b(?:therefore|thus|so|hence),?\s{1,3})?"
    r"\bthe\s{1,3}(?:(?:final|correct|right|best)\s{1,3})?answer\s{1,3}is\b",
    re.IGNORECASE,
)
# The beginning of a line that does: "#### 7", "**Answer:** 7", "Final answer: 7"; or a tag.
_LABELLED = re.compile(
    r"^[^\w\n]{0,8}(?:####|(?:final\s{1,3})?answer[ *_]{0,3}:)|<answer>",
    re.IGNORECASE | re.MULTILINE,
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
      `text`, as it came; `finish`, the finish reason; `prompt_tokens` and `completion_tokens`, None
      if not reported; `model`; and `error`, the reason why this is no answer and should be
      requested again, or None. If the endpoint reports them, also `thought`, which comes apart
      from the text; and `logprobs`: each token with the log probabilities of the top tokens at its
      position, including itself.
    """
    failure = find_failure(body)
    body = _object(body)
    usage, choices = _object(body.get("usage")), body.get("choices")
    first = _object(choices[0] if isinstance(choices, list) and choices else None)
    message = read_message(_object(first.get("message")))
    text, finish = message.text, finish_reasons.read_finish(first)
    if message.refusal:
        text, finish = text.strip() or message.refusal, "refusal"
    error = None
    if failure:
        error = f"the response is an error ({failure.status}): {clean(failure.message)}"
    elif not first:
        error = "the response has no choices"
    elif not text.strip() and not message.thought:
        error = f"the response has no text (finish_reason {clean(finish, 40)})"
    elif finish_reasons.broken_off(finish):
        error = finish_reasons.problem(clean(finish, 40), announced=False)
    distributions = _logprobs(_object(first.get("logprobs")).get("content"))
    return (
        {
            "text": _utf8(text.strip()),
            "finish": None if finish is None else clean(finish, 40),
            "prompt_tokens": _count(usage.get("prompt_tokens")),
            "completion_tokens": _count(usage.get("completion_tokens")),
            "model": clean(body.get("model"), 200) if isinstance(body.get("model"), str) else None,
            "error": error,
        }
        | ({"thought": _utf8(message.thought)} if message.thought else {})
        | ({"logprobs": distributions} if distributions and error is None else {})
    )


def read_redacted(body: Any) -> dict[str, Any]:
    """Returns what `read_completion` does, without keys that the endpoint may have repeated.

    Raises:
      RecursionError: the JSON is nested too deeply.
    """
    answer = read_completion(redact(body))  # Before a text is cut.
    logprobs = answer.pop("logprobs", ())
    answer = redact(answer)  # Parts of a text may join to a key.
    return answer | ({"logprobs": logprobs} if logprobs and not _spell_key(logprobs) else {})


def _spell_key(logprobs: Sequence[tuple[str, Mapping[str, float]]]) -> bool:
    """Returns whether the tokens, or those of one rank at each position, join to a key."""
    ranked = [[token, *top] for token, top in logprobs]
    texts = ("".join(rank) for rank in itertools.zip_longest(*ranked, fillvalue=""))
    return any(redact(text) != text for text in texts)


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


def judge(
    text: str,
    finish: str | None,
    gold: str,
    kind: str,
    keep: str = "right",
    rationale_from: str = "answer",
    thought: str = "",
    question: str = "",
) -> Judged:
    """Evaluates a teacher's answer, and cuts its rationale before the sentence with the answer.

    Text after the answer is dropped as well: the student's targets add their own answer sentence.
    The answer is read from the text after the thought, and from the thought if that is all.

    Args:
      text: text of the completion, which may begin with a thought between tags.
      finish: finish reason; a text that the teacher did not end itself is rejected.
      gold: the data set's answer.
      kind: one of `answers.KINDS`.
      keep: "right" keeps only correct answers, "all" also wrong and missing ones.
      rationale_from: "answer": the text after the thought is the rationale; "thought": the thought
        is; "both": the thought, followed by the text.
      thought: the thought, if it came apart from the text.
      question: the question, which may list choices.
    """
    inner, text = split_thought(text)
    thought = thought.strip() or inner
    spoken = text or thought
    matches = _announcements(spoken)
    problem = finish_reasons.problem(finish, announced=bool(matches))
    extracted = None if problem else answers.extract_answer(spoken, kind, question)
    correct = not problem and answers.answers_equal(spoken, gold, kind, question)
    stated = text[: matches[-1].start()] if matches and text else text
    if thought and _letters(stated) == _letters(extracted or ""):
        stated = ""  # The bare answer, as many models give it after a thought.
    parts = {
        "answer": [stated],
        "thought": [_reasoning(thought, extracted, kind)],
        "both": [_reasoning(thought, extracted, kind), stated],
    }[rationale_from]
    rationale = "\n\n".join(part for part in map(str.strip, parts) if part)
    reason = ""
    if problem:
        reason = problem
    elif extracted is None and keep == "right":
        reason = "the text gives no answer"
    elif not correct and keep == "right":
        reason = f"its answer is {extracted}, the data set's is {gold}"
    elif not rationale and rationale_from == "thought":
        reason = "there is no thought; teacher.rationale_from=answer takes the text"
    elif not rationale:
        advice = "; teacher.rationale_from=thought takes the thought" if thought else ""
        reason = "there is no rationale before the answer" + advice
    return Judged(rationale, extracted, correct, reason)


def judge_row(row: dict[str, Any], question: Question, kind: str, teacher: Config) -> Judged:
    """Evaluates an answer without an error, as `judge` does, with the settings in `teacher`."""
    options = (teacher.keep, teacher.rationale_from, row.get("thought", ""), question.question)
    return judge(row["text"], row["finish"], question.answer, kind, *options)


def _announcements(text: str) -> list[re.Match[str]]:
    return list(_ANSWER_IS.finditer(text)) or list(_LABELLED.finditer(text))


def _reasoning(thought: str, extracted: str | None, kind: str) -> str:
    """Returns a thought up to where it last announces the answer, if it does."""
    last = next(reversed(_announcements(thought)), None)
    # If it announced something else on the way, all of it led to the answer.
    found = last and answers.answers_equal(thought[last.start() :], extracted, kind)
    return thought[: last.start()] if last and found else thought


def _letters(text: str) -> str:
    return re.sub(r"\\[a-z]+|[^\w./-]", "", text).strip(".").casefold()


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
