"""Implements `--mode=teach`: collects a teacher's rationales for the training questions."""

import asyncio
import collections
import contextlib
import os
import pathlib
import signal
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from typing import Any

from kpod_jax.config.defaults import Config
from kpod_jax.teacher.ask import ask, endpoint
from kpod_jax.teacher.batch import read_batch, write_batch
from kpod_jax.teacher.completions import clean, judge_row
from kpod_jax.teacher.ledger import Key, Ledger
from kpod_jax.teacher.questions import Question, answer_kind, load_questions
from kpod_jax.teacher.requests import Request, make_requests, settings
from kpod_jax.teacher.results import cost, write_results
from kpod_jax.teacher.selection import Selection
from kpod_jax.utils import files, signals
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.printable import message
from kpod_jax.utils.progress import Progress
from kpod_jax.utils.redaction import redact
from kpod_jax.utils.workdir import Workdir

_NAME = "answers"


class NoAnswerError(UserError):
    """Every request of a run failed."""

    exit_code = 1


def teach(config: Config, workdir: files.PathLike) -> str:
    """Sends unanswered requests, or writes or reads batch files, and writes the results.

    Args:
      config: a checked configuration (see `cli.checks.check`).
      workdir: DIR; all files are written to DIR/teacher.

    Returns:
      A summary for the user.

    Raises:
      UserError: an error that the user can fix; earlier answers are kept.
      NoAnswerError: every request failed.
      Preempted: a signal ended the run; earlier answers are kept.
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
    ended: signals.Preempted | UserError | None = None
    skipped = 0
    with Ledger(directory / f"{_NAME}.jsonl") as ledger:
        _check_settings(directory, ledger, redact(settings(teacher)))
        answered, before = ledger.answered(), len(ledger.rows)
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
        except (signals.Preempted, UserError) as error:
            ended = error
        except KeyboardInterrupt:
            ended = signals.Interrupted()
        finally:
            summary = write_results(directory, questions, requests, ledger, config)
        errors = [row["error"] for row in ledger.rows[before:]]
    report = _describe(summary, directory, skipped) + f" ({time.monotonic() - start:.1f} s)"
    if failures := _describe_failures(errors):
        report += f". {failures}"
    if isinstance(ended, signals.Preempted):
        raise type(ended)(report)
    if errors and all(errors):
        raise NoAnswerError(f"{report}. Fix the problem, then run the same command again.")
    if ended is not None:
        raise ended
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

        asyncio.run(_until_terminated(ask(needed(), teacher, write)))


async def _until_terminated(work: Awaitable[None]) -> None:
    """Awaits work, and raises `Preempted` at SIGTERM; asyncio itself ends at Ctrl-C."""
    loop, task, received = asyncio.get_running_loop(), asyncio.current_task(), []
    assert task is not None

    def stop() -> None:
        received.append(signal.SIGTERM)
        task.cancel()

    previous = signal.getsignal(signal.SIGTERM)
    # Other threads, and Windows, get no signals.
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
        loop.add_signal_handler(signal.SIGTERM, stop)
    try:
        await work
    except asyncio.CancelledError:
        if received:
            raise signals.Preempted from None
        raise
    finally:
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, previous)


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


def _describe_failures(errors: Sequence[str | None]) -> str:
    """Returns how many of the requests failed, by reason; "" if none did."""
    reasons = collections.Counter(filter(None, errors))
    if not reasons:
        return ""
    which = f"{reasons.total()} of {len(errors)}" if None in errors else f"All {len(errors)}"
    listed = "; ".join(f"{count} × {clean(why, 200)}" for why, count in reasons.most_common(3))
    more = f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
    return f"{which} requests failed: {listed}{more}"


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
