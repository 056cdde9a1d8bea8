"""Writes request files for OpenAI's batch API and reads its result files.

Uploading is left to the user. A request's `custom_id` is RECORD#SAMPLE#DIGEST, which matches each
result to exactly its question.
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from kpod_jax.data import jsonl
from kpod_jax.teacher.completions import clean, read_completion, read_redacted
from kpod_jax.teacher.failures import find_failure
from kpod_jax.teacher.ledger import Key
from kpod_jax.teacher.requests import Request
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.redaction import redact

# Limits of the batch API per file.
MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000


def write_batch(
    directory: pathlib.Path,
    requests: Sequence[Request],
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
) -> list[pathlib.Path]:
    """Writes `requests-1.jsonl`, `requests-2.jsonl`, ..., replacing older files.

    Args:
      directory: created if it is missing.
      requests: requests without an answer.
      max_requests: maximum requests per file.
      max_bytes: maximum bytes per file.

    Returns:
      The paths of the files.

    Raises:
      UserError: the files cannot be written.
    """
    parts: list[list[str]] = []
    size = max_bytes
    for request in requests:
        row = {
            "custom_id": _custom_id(request.key),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": request.body,
        }
        line = json.dumps(row, ensure_ascii=False) + "\n"
        length = len(line.encode())
        if size + length > max_bytes or len(parts[-1]) >= max_requests:
            parts.append([])
            size = 0
        parts[-1].append(line)
        size += length
    paths = [directory / f"requests-{number}.jsonl" for number in range(1, len(parts) + 1)]
    for path, lines in zip(paths, parts, strict=True):
        files.write_text(path, "".join(lines))
    for path in directory.glob("requests-*.jsonl"):
        if path not in paths:  # From an earlier, larger batch; uploading it again costs money.
            path.unlink()
    return paths


def read_batch(
    path: files.PathLike, requests: Sequence[Request], write: Callable[[dict[str, Any]], None]
) -> int:
    """Reads an output file or error file of the batch API.

    Args:
      path: path of the file.
      requests: requests without an answer; results for others are skipped.
      write: called with each row, as in `ask.ask`.

    Returns:
      Number of lines skipped: already answered, for another question, or unreadable.

    Raises:
      UserError: the file cannot be read or has no results.
    """
    pending = {_custom_id(request.key): request for request in requests}
    skipped, results = 0, 0
    for _, row, _ in jsonl.read_rows(path):
        name = row.get("custom_id") if row else None
        results += isinstance(name, str)
        request = pending.pop(name, None) if isinstance(name, str) else None
        if row is None or request is None:
            skipped += 1
            continue
        write(request.names | _answer(row))
    if not results:
        raise UserError(
            f"{path} has no batch results. Expected an output file of the batch API with lines "
            '{"custom_id": …, "response": {"status_code": 200, "body": {…}}, "error": null}.'
        )
    return skipped


def _custom_id(key: Key) -> str:
    return "#".join(map(str, key))


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    response = row.get("response")
    response = response if isinstance(response, dict) else {}
    body = response.get("body", response)
    try:
        if response and str(response.get("status_code", 200)) == "200":
            return read_redacted(body)
        # Error files have the error in the response's body, expired requests in the row.
        body, row = redact(body), redact(row)
    except RecursionError:
        body, row = "JSON nested too deeply to parse", {}
    failure = find_failure(row) or find_failure(body)
    text = failure.message if failure else body or "no response"
    return read_completion(None) | {"error": redact(f"the batch API answered: {clean(text)}")}
