"""Files for OpenAI's batch API: requests to upload, and the results that come back.

Nothing is uploaded from here. A request's `custom_id` is RECORD#SAMPLE#DIGEST, so that a result
finds its question again, and no other.
"""

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from kpod_jax.data import jsonl
from kpod_jax.teacher.completions import clean, read_completion
from kpod_jax.teacher.ledger import Key
from kpod_jax.teacher.requests import Request
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

# What the batch API takes in one file.
MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000


def write_batch(
    directory: pathlib.Path,
    requests: Sequence[Request],
    most_requests: int = MOST_REQUESTS,
    most_bytes: int = MOST_BYTES,
) -> list[pathlib.Path]:
    """Writes `requests-1.jsonl`, `requests-2.jsonl`, ..., in place of older ones.

    Args:
      directory: made if it is missing.
      requests: those without an answer.
      most_requests: of a file.
      most_bytes: of a file.

    Returns:
      The files.

    Raises:
      UserError: they cannot be written.
    """
    parts: list[list[str]] = []
    size = most_bytes
    for request in requests:
        row = {
            "custom_id": _custom_id(request.key),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": request.body,
        }
        line = json.dumps(row, ensure_ascii=False) + "\n"
        length = len(line.encode())
        if size + length > most_bytes or len(parts[-1]) >= most_requests:
            parts.append([])
            size = 0
        parts[-1].append(line)
        size += length
    paths = [directory / f"requests-{number}.jsonl" for number in range(1, len(parts) + 1)]
    for path, lines in zip(paths, parts, strict=True):
        files.write_text(path, "".join(lines))
    for path in directory.glob("requests-*.jsonl"):
        if path not in paths:  # Of an earlier, longer batch: uploaded, it would be paid for again.
            path.unlink()
    return paths


def read_batch(
    path: files.PathLike, requests: Sequence[Request], write: Callable[[dict[str, Any]], None]
) -> int:
    """Takes in a file of results, or of errors, of the batch API.

    Args:
      path: of the file that the API gave.
      requests: those without an answer; results of others are passed over.
      write: is given each row, as by `ask.ask`.

    Returns:
      How many results were passed over: answered before, of another question, or not readable.

    Raises:
      UserError: the file cannot be read or holds no result at all.
    """
    awaited = {_custom_id(request.key): request for request in requests}
    passed, results = 0, 0
    for _, row, _ in jsonl.read_rows(path):
        name = row.get("custom_id") if row else None
        results += isinstance(name, str)
        request = awaited.pop(name, None) if isinstance(name, str) else None
        if row is None or request is None:
            passed += 1
            continue
        write(request.names | _answer(row))
    if not results:
        raise UserError(
            f"{path} has no result of a batch. Expected the output file of the batch API: a line "
            'is {"custom_id": …, "response": {"status_code": 200, "body": {…}}, "error": null}.'
        )
    return passed


def _custom_id(key: Key) -> str:
    return "#".join(map(str, key))


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    response = row.get("response")
    response = response if isinstance(response, dict) else {}
    if response.get("status_code") == 200:
        return read_completion(response.get("body"))
    # The file of errors has them in the body, expired requests beside it.
    said = row.get("error") or response.get("body") or "no response"
    if isinstance(said, dict):
        said = said.get("error") or said
    if isinstance(said, dict):
        said = said.get("message") or said
    return read_completion(None) | {"error": f"the batch API answered: {clean(said)}"}
