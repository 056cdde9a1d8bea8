"""`--mode=teach`: a data set's training questions in, DIR/teacher/rationales.jsonl out."""

import asyncio
import os
import pathlib
import sys
import time
from typing import Any

from kpod_jax.config.defaults import Config
from kpod_jax.teacher.ask import ask, endpoint
from kpod_jax.teacher.batch import read_batch, write_batch
from kpod_jax.teacher.completions import judge
from kpod_jax.teacher.ledger import Ledger
from kpod_jax.teacher.questions import Question, answer_kind, load_questions
from kpod_jax.teacher.requests import Request, make_requests, settings
from kpod_jax.teacher.results import cost, write_results
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.progress import Progress
from kpod_jax.utils.workdir import Workdir

_NAME = "answers"


def teach(config: Config, workdir: files.PathLike) -> str:
    """Asks what was not answered yet, or writes or reads batch files, and writes the results.

    Args:
      config: checked (`configuration_checks.check`).
      workdir: DIR; everything is written to DIR/teacher.

    Returns:
      What was done, for the user.

    Raises:
      UserError: something that the user can put right; the answers that came before are kept.
      SystemExit: interrupted by Ctrl-C; likewise.
    """
    teacher = config.teacher
    if files.is_remote(workdir):
        raise UserError(
            f"--mode=teach with --workdir={workdir}: each answer is added to a file as it comes, "
            "which a bucket has none of. Expected a directory of this machine, to be copied to the "
            "bucket when all is done."
        )
    if not teacher.model:
        raise UserError(
            "teacher.model is missing: the teacher's name at its endpoint, such as "
            "--config.teacher.model=gpt-4o-mini."
        )
    began = time.monotonic()
    questions = load_questions(config.data)
    requests = make_requests(questions, teacher)
    directory = Workdir(pathlib.Path(workdir) / "teacher")
    interrupted, passed = False, 0
    with Ledger(directory / f"{_NAME}.jsonl") as ledger:
        _check_settings(directory, ledger, settings(teacher))
        answered = ledger.answered()
        missing = [request for request in requests if request.key not in answered]
        if teacher.batch == "write":
            return _write_batch(directory, missing)
        try:
            if teacher.batch == "read":
                passed = read_batch(teacher.batch_results, missing, ledger.append)
            elif missing:
                _ask(questions, requests, missing, ledger, config)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            summary = write_results(directory, questions, requests, ledger, config)
    shown = _shown(summary, directory, passed, teacher) + f" ({time.monotonic() - began:.1f} s)"
    if interrupted:
        print(f"\nInterrupted. {shown}\nThe same command asks for the others.", file=sys.stderr)
        sys.exit(130)
    return shown


def _ask(
    questions: list[Question],
    requests: list[Request],
    missing: list[Request],
    ledger: Ledger,
    config: Config,
) -> None:
    teacher, kind = config.teacher, answer_kind(config.data)
    gold = {question.id: question.answer for question in questions}
    address = teacher.base_url or os.environ.get("OPENAI_BASE_URL") or "OpenAI"
    print(
        f"teach: asking {teacher.model} at {endpoint(address)} for {len(missing)} of "
        f"{len(requests)} rationales",
        flush=True,
    )
    done = len(requests) - len(missing)
    kept = count = 0
    with Progress(len(requests), "Asking", unit="rationales", initial=done) as progress:

        def write(row: dict[str, Any]) -> None:
            nonlocal kept, count
            ledger.append(row)
            judged = judge(row["text"], row["finish"], gold[row["id"]], kind, teacher.keep)
            count += 1
            kept += int(row["error"] is None and not judged.reason)
            spent = cost(teacher, ledger)
            values = {"kept": kept / count} | ({"dollars": spent} if spent else {})
            progress.update(1, **values)

        asyncio.run(ask(missing, teacher, write))


def _check_settings(directory: Workdir, ledger: Ledger, used: dict[str, Any]) -> None:
    """Answers of different teachers, or to different prompts, are never mixed."""
    fingerprint = directory.fingerprint(used, ())
    stored = directory.stored(_NAME)
    if stored == fingerprint:
        return
    if ledger.rows:
        why = (
            "it is not known which" if stored is None else directory.difference(_NAME, fingerprint)
        )
        raise UserError(
            f"{ledger.path} holds answers that were asked for with other settings: {why}. Nothing "
            "was changed. Use the settings that they were made with, another --workdir, or move "
            f"{directory.path} away to ask anew."
        )
    directory.mark(_NAME, fingerprint)


def _write_batch(directory: Workdir, missing: list[Request]) -> str:
    paths = write_batch(directory / "batch", missing)
    if not paths:
        return "teach: everything is answered; there is nothing to write."
    return (
        f"teach: {len(missing)} requests → {', '.join(map(str, paths))}\nUpload them to the batch "
        "API, download the output files, and give each with --config.teacher.batch=read "
        "--config.teacher.batch_results=FILE."
    )


def _shown(summary: dict[str, Any], directory: Workdir, passed: int, teacher: Config) -> str:
    lines = (
        f"teach: {summary['answered']} of {summary['questions'] * summary['samples']} answered, "
        f"{summary['kept']} kept ({100 * summary['kept_share']:.1f} %), "
        f"{summary['prompt_tokens']} + {summary['completion_tokens']} tokens"
    )
    if summary["cost"]:
        lines += f", ${summary['cost']:.4f}"
    if passed:
        lines += f", {passed} results passed over (answered before, or of other questions)"
    return lines + f" → {directory / 'rationales.jsonl'}, rejected.jsonl, summary.json"
