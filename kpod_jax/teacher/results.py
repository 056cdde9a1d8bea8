"""From answers to the file of rationales that a run reads, and an account of the others."""

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
    """Writes rationales.jsonl, rejected.jsonl and summary.json of what was answered so far.

    Where the teacher's log probabilities were asked for, distributions.jsonl has those of the
    rationales, as `baseline.distributions` reads them.

    A row of rationales.jsonl has `id`, `sample`, `question`, `rationale`, `answer` (that of the
    data set), `teacher`, `extracted` (the teacher's answer) and `correct`.

    Args:
      directory: DIR/teacher.
      questions: that are asked.
      requests: all of theirs.
      ledger: the answers.
      config: the whole configuration.

    Returns:
      What summary.json holds.

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
            reasons[_group(judged.reason)] += 1
            rejected.append(names | answer | {"reason": judged.reason, "text": row["text"]})
        else:
            pairs = row.get("logprobs", ())
            tokens, tops = [token for token, _ in pairs], [top for _, top in pairs]
            # Tokens that are parts of characters may not spell the text.
            if "".join(tokens).lstrip().startswith(judged.rationale):
                spelled = {"rationale": judged.rationale, "tokens": tokens, "top_logprobs": tops}
                distributions.append({"question": question.question} | spelled)
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
    """Dollars for all that was ever answered, kept or not."""
    read, written = ledger.prompt_tokens, ledger.completion_tokens
    return (read * teacher.input_price + written * teacher.output_price) / 1e6


def _group(reason: str) -> str:
    return "wrong answer" if reason.startswith("its answer is") else reason.partition(";")[0]
