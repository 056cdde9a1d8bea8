"""Implements `--mode=teach`: collects a teacher's rationales for the training questions."""

import asyncio
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from kpod_jax.config.defaults import Config
from kpod_jax.teacher.ask import ask, endpoint
from kpod_jax.teacher.batch import read_batch, write_batch
from kpod_jax.teacher.completions import judge_row
from kpod_jax.teacher.ledger import Key, Ledger
from kpod_jax.teacher.questions import Question, answer_kind, load_questions
from kpod_jax.teacher.requests import Request, make_requests, settings
from kpod_jax.teacher.results import cost, write_results
from kpod_jax.teacher.selection import Selection
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.printable import message
from kpod_jax.utils.progress import Progress
from kpod_jax.utils.redaction import redact
from kpod_jax.utils.workdir import Workdir

_NAME = "answers"


def teach(config: Config, workdir: files.PathLike) -> str:
    """Sends unanswered requests, or writes or reads batch files, and writes the results.

    Args:
      config: a checked configuration (see `cli.checks.check`).
      workdir: DIR; all files are written to DIR/teacher.

    Returns:
      A summary for the user.

    Raises:
      UserError: an error that the user can fix; earlier answers are kept.
      SystemExit: interrupted by Ctrl-C; earlier answers are kept.
    """
    teacher = config.teacher
    if files.is_remote(workdir):
        raise UserError(
            f"--mode=teach does not support --workdir={workdir}: it appends each answer to a file, "
            "which buckets do not allow. Expected a directory on this machine; copy it to the "
            "bucket when done."
        )
    if not teacher.model:
        raise UserError(
            "teacher.model is not set. Set it to the model's name at the endpoint, such as "
            "--config.teacher.model=gpt-4o-mini."
        )
    start = time.monotonic()
    questions = load_questions(config.data)
    requests = make_requests(questions, teacher)
    directory = Workdir(pathlib.Path(workdir) / "teacher")
    interrupted, skipped = False, 0
    with Ledger(directory / f"{_NAME}.jsonl") as ledger:
        _check_settings(directory, ledger, redact(settings(teacher)))
        answered = ledger.answered()
        selection = _select(questions, requests, answered, config)
        missing = [
            request
            for request in requests
            if request.key not in answered and not selection.is_full(request.id)
        ]
        if teacher.batch == "write":
            return _write_batch(directory, missing)
        try:
            if teacher.batch == "read":
                skipped = read_batch(teacher.batch_results, missing, ledger.append)
            elif missing:
                _send(questions, missing, ledger, selection, config)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            summary = write_results(directory, questions, requests, ledger, config)
    report = _describe(summary, directory, skipped) + f" ({time.monotonic() - start:.1f} s)"
    if interrupted:
        print(message(f"Interrupted: {report}. Run the same command to resume."), file=sys.stderr)
        sys.exit(130)
    return report


def _select(
    questions: list[Question],
    requests: list[Request],
    answered: Mapping[Key, dict[str, Any]],
    config: Config,
) -> Selection:
    """Returns the selection of the answers so far."""
    by_id, kind = {q.id: q for q in questions}, answer_kind(config.data)
    selection = Selection(config.teacher.rationales_per_question)
    for request in requests:
        if request.key in answered:
            row = answered[request.key]
            judged = judge_row(row, by_id[request.id], kind, config.teacher)
            if not judged.reason:
                selection.add(request.id, request.sample, judged.rationale)
    return selection


def _send(
    questions: list[Question],
    missing: list[Request],
    ledger: Ledger,
    selection: Selection,
    config: Config,
) -> None:
    teacher, kind = config.teacher, answer_kind(config.data)
    by_id = {question.id: question for question in questions}
    address = teacher.base_url or os.environ.get("OPENAI_BASE_URL") or "OpenAI"
    asking = (
        f"teach: asking {teacher.model} at {endpoint(address)} for {len(missing)} of "
        f"{len(questions) * teacher.samples} rationales"
    )
    print(message(asking), flush=True)
    total = len(questions) * teacher.samples
    kept = count = 0
    with Progress(total, "Asking", unit="rationales", initial=total - len(missing)) as progress:

        def write(row: dict[str, Any]) -> None:
            nonlocal kept, count
            ledger.append(row)
            judged = judge_row(row, by_id[row["id"]], kind, teacher)
            count += 1
            if row["error"] is None and not judged.reason:
                kept += not selection.add(row["id"], row["sample"], judged.rationale)
            spent = cost(teacher, ledger)
            values = {"kept": kept / count} | ({"dollars": spent} if spent else {})
            progress.update(1, **values)

        def needed() -> Iterator[Request]:
            for request in missing:
                if selection.is_full(request.id):  # By now.
                    progress.update()
                else:
                    yield request

        asyncio.run(ask(needed(), teacher, write))


def _check_settings(directory: Workdir, ledger: Ledger, used: dict[str, Any]) -> None:
    """Checks that existing answers come from the same teacher, prompt and settings."""
    fingerprint = directory.fingerprint(used, ())
    stored = directory.stored(_NAME)
    if stored == fingerprint:
        return
    if ledger.rows:
        change = (
            "the original settings are unknown"
            if stored is None
            else directory.difference(_NAME, fingerprint)
        )
        raise UserError(
            f"{ledger.path} holds answers generated with other settings: {change}. Nothing was "
            "changed. Use the original settings or another --workdir, or move "
            f"{directory.path} away to start over."
        )
    directory.mark(_NAME, fingerprint)


def _write_batch(directory: Workdir, missing: list[Request]) -> str:
    paths = write_batch(directory / "batch", missing)
    if not paths:
        return "teach: all requests are answered; nothing to write."
    return (
        f"teach: {len(missing)} requests → {', '.join(map(str, paths))}\nUpload them to the batch "
        "API, download the output files, and read each with --config.teacher.batch=read "
        "--config.teacher.batch_results=FILE."
    )


def _describe(summary: dict[str, Any], directory: Workdir, skipped: int) -> str:
    text = (
        f"teach: {summary['answered']} of {summary['questions'] * summary['samples']} answered, "
        f"{summary['kept']} kept ({100 * summary['kept_share']:.1f} %), "
        f"{summary['prompt_tokens']} + {summary['completion_tokens']} tokens"
    )
    if summary["cost"]:
        text += f", ${summary['cost']:.4f}"
    if skipped:
        text += f", {skipped} results skipped (already answered, or for other questions)"
    return text + f" → {directory / 'rationales.jsonl'}, rejected.jsonl, summary.json"
