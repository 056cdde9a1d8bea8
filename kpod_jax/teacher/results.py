"""Writes the rationales for a run, the rejected answers and a summary."""

import collections
from collections.abc import Sequence
from typing import Any

from kpod_jax.config.defaults import Config
from kpod_jax.teacher.completions import judge
from kpod_jax.teacher.ledger import Ledger
from kpod_jax.teacher.questions import Question, answer_kind
from kpod_jax.teacher.requests import Request
from kpod_jax.utils import files
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
    correct = 0
    for request in sorted(requests, key=lambda request: position[request.id]):
        question = questions[position[request.id]]
        names = {"id": question.row_id, "sample": request.sample, "question": question.question}
        row = answered.get(request.key)
        if row is None:
            reason = errors.get(request.key, "not asked yet")
            reasons["no answer" if request.key in errors else "not asked yet"] += 1
            rejected.append(names | {"reason": reason})
            continue
        judged = judge(row["text"], row["finish"], question.answer, kind, teacher.keep)
        correct += judged.correct
        answer = {"extracted": judged.extracted, "answer": question.answer}
        if judged.reason:
            reasons[_category(judged.reason)] += 1
            rejected.append(names | answer | {"reason": judged.reason, "text": row["text"]})
        else:
            pairs = row.get("logprobs", ())
            tokens, tops = [token for token, _ in pairs], [top for _, top in pairs]
            # Tokens that split a character may not join to the text.
            if "".join(tokens).lstrip().startswith(judged.rationale):
                values = {"rationale": judged.rationale, "tokens": tokens, "top_logprobs": tops}
                distributions.append({"question": question.question} | values)
            row = {"rationale": judged.rationale, "teacher": teacher.model}
            kept.append(names | row | answer | {"correct": judged.correct})
    count = len(requests) - reasons["no answer"] - reasons["not asked yet"]
    summary = {
        "teacher": teacher.model,
        "questions": len(questions),
        "samples": teacher.samples,
        "asked": len(requests) - reasons["not asked yet"],
        "answered": count,
        "correct": correct,
        "kept": len(kept),
        "kept_share": len(kept) / max(1, count),
        "questions_with_a_rationale": len({row["id"] for row in kept}),
        "rejected": dict(reasons),
        "prompt_tokens": ledger.prompt_tokens,
        "completion_tokens": ledger.completion_tokens,
        "answers_without_token_counts": sum(
            row["error"] is None and row["completion_tokens"] is None for row in ledger.rows
        ),
        "cost": cost(teacher, ledger),
    }
    files.write_jsonl(directory / "rationales.jsonl", kept)
    files.write_jsonl(directory / "rejected.jsonl", rejected)
    if teacher.logprobs:
        files.write_jsonl(directory / "distributions.jsonl", distributions)
    files.write_json(directory / "summary.json", summary)
    return summary


def cost(teacher: Config, ledger: Ledger) -> float:
    """Returns the cost of all answers in the ledger, kept or not, in dollars."""
    prompt, completion = ledger.prompt_tokens, ledger.completion_tokens
    return (prompt * teacher.input_price + completion * teacher.output_price) / 1e6


def _category(reason: str) -> str:
    return "wrong answer" if reason.startswith("its answer is") else reason.partition(";")[0]
