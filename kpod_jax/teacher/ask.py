"""Sends concurrent requests to an OpenAI-compatible endpoint.

The `openai` client retries requests, with exponential backoff and jitter or after the endpoint's
Retry-After. This module adds a shared rate limit, decides when to stop, and records the answers.
"""

import asyncio
import json
import os
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import openai

from kpod_jax.config.defaults import Config
from kpod_jax.teacher import response
from kpod_jax.teacher.completions import clean, read_completion, read_redacted
from kpod_jax.teacher.failures import find_failure, page_text
from kpod_jax.teacher.requests import Request
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.redaction import redact

# Consecutive failures, each after all retries, that stop the run: the endpoint is the problem.
_MAX_FAILURES = 20
# Maximum Retry-After in seconds; if it is longer, the client does not retry the request.
_MAX_RETRY_AFTER = 120.0
_NO_CREDIT = "The account has no credit left; add credit and rerun the same command."
_ADVICE = {
    402: _NO_CREDIT,
    401: "Set the environment variable OPENAI_API_KEY to a key of this endpoint.",
    403: "The key has no access to this endpoint or model; check the account or the model.",
    404: "Check teacher.base_url, which usually ends in /v1, and teacher.model.",
}


class Pace:
    """Rate limiter that spaces requests evenly and honors the endpoint's Retry-After."""

    def __init__(
        self,
        per_minute: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Initializes the limiter; the first request is sent at once.

        Args:
          per_minute: maximum requests per minute, including retries; 0: no limit.
          clock: returns the time in seconds.
          sleep: sleeps for a number of seconds.
        """
        self._gap = 60 / per_minute if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._next = -float("inf")

    async def turn(self, *_: object) -> None:
        """Waits until the next request may be sent."""
        now = self._clock()
        start = max(now, self._next)
        self._next = start + self._gap
        if start > now:
            await self._sleep(start - now)

    async def heed(self, response: Any) -> None:
        """Delays all requests if a throttling response says so."""
        if response.status_code not in (429, 503):
            return
        try:
            seconds = float(response.headers.get("retry-after", ""))
        except ValueError:  # A date or nothing: only the client's retry of this request waits.
            return
        if 0 < seconds <= _MAX_RETRY_AFTER:
            self._next = max(self._next, self._clock() + seconds)


def make_client(teacher: Config) -> openai.AsyncOpenAI:
    """Returns a client whose key comes from the environment and is stored nowhere else.

    Raises:
      UserError: the endpoint is OpenAI's and there is no key.
    """
    base_url = teacher.base_url or os.environ.get("OPENAI_BASE_URL") or None
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and base_url is None:
        raise UserError(
            "No key for OpenAI: set the environment variable OPENAI_API_KEY, or set "
            "--config.teacher.base_url to another endpoint, such as http://localhost:8000/v1."
        )
    pace = Pace(teacher.requests_per_minute)
    most = response.maximum_bytes(teacher)
    http = response.BoundedClient(most, teacher.total_timeout, before=pace.turn)
    # The hooks run on every attempt, as `before` does, so the rate limit includes retries.
    http.event_hooks = {"response": [http.read, _correct_status, pace.heed]}
    return openai.AsyncOpenAI(
        api_key=key or "none",  # Local servers need no key, but the client does.
        base_url=base_url,
        timeout=teacher.timeout,
        max_retries=teacher.retries,
        http_client=http,
    )


async def _correct_status(received: Any) -> None:
    """Gives an error that came with status 200, and no text, the status that it should have.

    The client then retries it, and reports it, like any other error.
    """
    if received.status_code != 200:
        return
    body = _json(received.content)
    failure, answer = find_failure(body), read_completion(body)
    if failure and not answer["text"] and "thought" not in answer:
        received.status_code = failure.status
        received.extensions["sent_status"] = 200


async def ask(
    requests: Iterable[Request], teacher: Config, write: Callable[[dict[str, Any]], None]
) -> None:
    """Sends all requests, `teacher.concurrency` at a time.

    Args:
      requests: requests, in the order in which to send them; the next is taken when one is
        answered.
      teacher: `teacher` of the configuration.
      write: called with each row as soon as it arrives; rows with an `error` have no text.

    Raises:
      UserError: the endpoint rejects the key, the address or the model; the account has no credit
        left; or too many requests in a row fail.
    """
    problem: Exception | None = None
    async with make_client(teacher) as client:
        sender = _Sender(client, iter(requests), write)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(teacher.concurrency):
                    group.create_task(sender.run())
        except* UserError as errors:
            problem = errors.exceptions[0]
    if problem is not None:
        raise problem


class _Sender:
    """State shared by the concurrent tasks."""

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        requests: Iterator[Request],
        write: Callable[[dict[str, Any]], None],
    ) -> None:
        self._client, self._requests, self._write = client, requests, write
        self._failures = 0

    async def run(self) -> None:
        for request in self._requests:
            answer = await self._answer(request)
            self._failures = self._failures + 1 if answer["error"] else 0
            self._write(request.names | answer)
            if self._failures >= _MAX_FAILURES:
                raise UserError(
                    f"The last {_MAX_FAILURES} requests to {self._endpoint()} all failed. The last "
                    f"error: {answer['error']}. Earlier answers are kept; fix the problem and "
                    "rerun the same command."
                )

    async def _answer(self, request: Request) -> dict[str, Any]:
        """Returns the row of an answer or an error."""
        fields = dict(request.body)
        content = b""
        try:
            raw = await self._client.chat.completions.with_raw_response.create(
                model=fields.pop("model"), messages=fields.pop("messages"), extra_body=fields
            )
            content = raw.content
            return read_redacted(json.loads(content))
        except openai.APIStatusError as error:
            answer = _error_row(self._error_message(error))
        except openai.APITimeoutError:
            answer = _error_row("the endpoint did not answer in time (teacher.timeout)")
        except openai.APIConnectionError as error:
            cause = error.__cause__
            answer = _error_row(
                f"no connection to {self._endpoint()}: {clean(redact(str(cause or error)))}"
            )
        except (ValueError, RecursionError):
            page = clean(redact(page_text(content)))
            answer = _error_row(f"the response is not JSON: {page or 'it is empty'}")
        return answer

    def _error_message(self, error: openai.APIStatusError) -> str:
        """Returns the message of an error response.

        Raises:
          UserError: every other request would fail, too.
        """
        if reason := error.response.extensions.get("refused"):
            return reason
        code = error.status_code
        failure = find_failure(_json(error.response.content))
        text = failure.message if failure else page_text(error.response.content)
        message = clean(redact(text)) or clean(redact(error.message))
        sent = error.response.extensions.get("sent_status")
        shown = f"{sent} with an error ({code})" if sent else str(code)
        advice = _ADVICE.get(code)
        if error.code == "insufficient_quota":
            advice = _NO_CREDIT
        if advice:
            raise UserError(
                f"{self._endpoint()} answered {shown}: {message} {advice} Earlier answers are kept."
            ) from None
        return f"the endpoint answered {shown}: {message}"

    def _endpoint(self) -> str:
        return endpoint(str(self._client.base_url))


def endpoint(base_url: str) -> str:
    """Returns an address without credentials, query and fragment, which may be secret."""
    parts = urllib.parse.urlsplit(base_url)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def _json(content: bytes) -> Any:
    """Returns the JSON value of a response, or None."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _error_row(reason: str) -> dict[str, Any]:
    return read_completion(None) | {"error": redact(reason)}
