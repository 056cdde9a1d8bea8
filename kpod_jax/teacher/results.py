"""Writes the rationales for a run, the rejected answers and a summary."""

import collections
from collections.abc import Sequence
from typing import Any

from kpod_jax.config.defaults import Config
from kpod_jax.teacher import finish
from kpod_jax.teacher.completions import judge_row
from kpod_jax.teacher.ledger import Ledger
from kpod_jax.teacher.questions import Question, answer_kind
from kpod_jax.teacher.requests import Request
from kpod_jax.teacher.selection import Selection
from kpod_jax.utils import files, redaction
from kpod_jax.utils.workdir import Workdir


def write_results(
    directory: Workdir,
    questions: Sequence[Question],
    requests: Sequence[Request],
    ledger: Ledger,
    config: Config,
) -> dict[str, Any]:
    """Writes rationales.jsonl, rejected.jsonl and summary.json for the answers so far.

    If log probabilities were requested, also writes those of the rationales to
    distributions.jsonl, in the format that `baseline.distributions` reads.

    A row of rationales.jsonl has `id`, `sample`, `question`, `rationale`, `answer` (the data
    set's), `teacher`, `extracted` (the teacher's answer) and `correct`.

    Args:
      directory: DIR/teacher.
      questions: all questions.
      requests: all requests for these questions.
      ledger: the answers.
      config: the whole configuration.

    Returns:
      The contents of summary.json.

    Raises:
      UserError: the files cannot be written.
    """
    teacher, kind = config.teacher, answer_kind(config.data)
    position = {question.id: i for i, question in enumerate(questions)}
    answered, errors = ledger.answered(), ledger.errors()
    kept, rejected, distributions, reasons = [], [], [], collections.Counter()
    selection = Selection(teacher.rationales_per_question)
    asked = answers = correct = 0
    for request in sorted(requests, key=lambda request: position[request.id]):
        question = questions[position[request.id]]
        names = {"id": question.row_id, "sample": request.sample, "question": question.question}
        row = answered.get(request.key)
        if row is None and (error := errors.get(request.key)):
            asked += 1
            reasons[_no_answer(error)] += 1
            rejected.append(names | {"reason": error["error"]} | _said(error))
            continue
        if row is None and selection.is_full(request.id):
            reasons["not needed"] += 1
            continue
        if row is None:
            reasons["not asked yet"] += 1
            rejected.append(names | {"reason": "not asked yet"})
            continue
        judged = judge_row(row, question, kind, teacher)
        asked, answers, correct = asked + 1, answers + 1, correct + judged.correct
        answer = {"extracted": judged.extracted, "answer": question.answer}
        reason = judged.reason or selection.add(request.id, request.sample, judged.rationale)
        if reason:
            reasons[_category(reason)] += 1
            rejected.append(names | answer | {"reason": reason} | _said(row))
            continue
        if pairs := _aligned(row.get("logprobs", ()), judged.rationale):
            tokens, tops = zip(*pairs, strict=True)
            values = {"rationale": judged.rationale, "tokens": tokens, "top_logprobs": tops}
            distributions.append({"question": question.question} | values)
        row = {"rationale": judged.rationale, "teacher": teacher.model}
        kept.append(names | row | answer | {"correct": judged.correct})
    by_count = collections.Counter(selection.count(question.id) for question in questions)
    summary = {
        "teacher": teacher.model,
        "questions": len(questions),
        "samples": teacher.samples,
        "asked": asked,
        "answered": answers,
        "correct": correct,
        "kept": len(kept),
        "kept_share": len(kept) / max(1, answers),
        "questions_with_a_rationale": len({row["id"] for row in kept}),
        "questions_by_rationales": {str(n): by_count[n] for n in sorted(by_count)},
        "rejected": dict(reasons),
        "prompt_tokens": ledger.prompt_tokens,
        "completion_tokens": ledger.completion_tokens,
        "answers_without_token_counts": sum(
            row["error"] is None and row["completion_tokens"] is None for row in ledger.rows
        ),
        "cost": cost(teacher, ledger),
    }
    written = {"rationales": kept, "rejected": rejected}
    if teacher.logprobs:
        written["distributions"] = distributions
    for name, rows in written.items():
        files.write_jsonl(directory / f"{name}.jsonl", rows)
    summary = redaction.redact(summary)
    files.write_json(directory / "summary.json", summary)
    return summary


def cost(teacher: Config, ledger: Ledger) -> float:
    """Returns the cost of all answers in the ledger, kept or not, in dollars."""
    prompt, completion = ledger.prompt_tokens, ledger.completion_tokens
    return (prompt * teacher.input_price + completion * teacher.output_price) / 1e6


def _said(row: dict[str, Any]) -> dict[str, str]:
    """Returns the text and the thought of a row, if it has any."""
    return {name: row[name] for name in ("text", "thought") if row.get(name)}


def _aligned(pairs: Sequence[Any], rationale: str) -> Sequence[Any]:
    """Returns a response's tokens and distributions from the start of its rationale.

    None are returned if the rationale does not start with a token, or if the tokens do not spell
    it, as when they split a character.
    """
    text = "".join(token for token, _ in pairs)
    start, place = text.rfind(rationale), 0  # A thought before it may hold the same words.
    for i, (token, _) in enumerate(pairs):
        if place <= start < place + len(token):
            return () if text[place:start].strip() else pairs[i:]
        place += len(token)
    return ()


def _no_answer(row: dict[str, Any]) -> str:
    reason = row["finish"]
    known = reason and finish.problem(reason, announced=False)
    return f"no answer (finish_reason {reason})" if known else "no answer"


def _category(reason: str) -> str:
    return "wrong answer" if reason.startswith("its answer is") else reason.partition(";")[0]
