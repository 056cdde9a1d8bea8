"""Asking an OpenAI-compatible endpoint, many requests at a time.

The `openai` client does the retries: exponential backoff with jitter, the endpoint's Retry-After
where it names one. Here is what it leaves open: a common pace, when to stop, what to write down.
"""

import asyncio
import json
import os
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import openai

from kpod_jax.config.defaults import Config
from kpod_jax.teacher.completions import clean, read_completion
from kpod_jax.teacher.requests import Request
from kpod_jax.utils.errors import UserError

# So many failures in a row, each after all of its retries, are the endpoint's, not the questions'.
_GIVE_UP = 20
# The client heeds no longer Retry-After either, and gives the request up.
_LONGEST_HOLD = 120.0
_ADVICE = {
    401: "Set the environment variable OPENAI_API_KEY to a key of this endpoint.",
    403: "The key may not use this endpoint or model; see its account, or name another model.",
    404: "Check teacher.base_url, which mostly ends in /v1, and teacher.model.",
}


class Pace:
    """Sends requests evenly spaced, and none while the endpoint wants to be left alone."""

    def __init__(
        self,
        per_minute: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """Lets the first one through at once.

        Args:
          per_minute: most requests in any minute, retries included; 0: no limit.
          clock: in seconds.
          sleep: of so many seconds.
        """
        self._gap = 60 / per_minute if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._next = -float("inf")

    async def turn(self, *_: object) -> None:
        """Returns when the next request may be sent."""
        now = self._clock()
        start = max(now, self._next)
        self._next = start + self._gap
        if start > now:
            await self._sleep(start - now)

    async def heed(self, response: Any) -> None:
        """Holds all requests for as long as a throttling response says."""
        if response.status_code not in (429, 503):
            return
        try:
            seconds = float(response.headers.get("retry-after", ""))
        except ValueError:  # A date, or nothing: the client waits for it with this request alone.
            return
        if 0 < seconds <= _LONGEST_HOLD:
            self._next = max(self._next, self._clock() + seconds)


def make_client(teacher: Config) -> openai.AsyncOpenAI:
    """The client; the key is taken from the environment and kept nowhere else.

    Raises:
      UserError: OpenAI itself is to be asked without a key.
    """
    base_url = teacher.base_url or os.environ.get("OPENAI_BASE_URL") or None
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and base_url is None:
        raise UserError(
            "There is no key for OpenAI: set the environment variable OPENAI_API_KEY, or "
            "--config.teacher.base_url to another endpoint, such as http://localhost:8000/v1."
        )
    pace = Pace(teacher.requests_per_minute)
    return openai.AsyncOpenAI(
        api_key=key or "none",  # Local servers ask for none, but the client does.
        base_url=base_url,
        timeout=teacher.timeout,
        max_retries=teacher.retries,
        # Each try passes here, so that the pace counts retries as well.
        http_client=openai.DefaultAsyncHttpxClient(
            event_hooks={"request": [pace.turn], "response": [pace.heed]}
        ),
    )


async def ask(
    requests: Sequence[Request], teacher: Config, write: Callable[[dict[str, Any]], None]
) -> None:
    """Asks all of them, `teacher.concurrency` at a time.

    Args:
      requests: in the order in which they are sent.
      teacher: the configuration's block.
      write: is given each row as soon as it is there; rows with an `error` have no text.

    Raises:
      UserError: the endpoint refuses the key or does not know the address or the model; there is no
        credit left; or nothing but failures comes.
    """
    problem: Exception | None = None
    async with make_client(teacher) as client:
        asking = _Asking(client, iter(requests), write)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(teacher.concurrency, len(requests))):
                    group.create_task(asking.work())
        except* UserError as errors:
            problem = errors.exceptions[0]
    if problem is not None:
        raise problem


class _Asking:
    """What those that ask at the same time share."""

    def __init__(
        self,
        client: openai.AsyncOpenAI,
        requests: Iterator[Request],
        write: Callable[[dict[str, Any]], None],
    ) -> None:
        self._client, self._requests, self._write = client, requests, write
        self._failures = 0

    async def work(self) -> None:
        for request in self._requests:
            answer = await self._answer(request)
            self._failures = self._failures + 1 if answer["error"] else 0
            self._write(request.names | answer)
            if self._failures >= _GIVE_UP:
                raise UserError(
                    f"The last {_GIVE_UP} requests to {self._endpoint()} all failed. This one: "
                    f"{answer['error']}. The answers before are kept; run the same command again "
                    "when that is mended."
                )

    async def _answer(self, request: Request) -> dict[str, Any]:
        """The row of an answer, or of what was wrong with it."""
        try:
            response = await self._client.chat.completions.with_raw_response.create(**request.body)
            answer = read_completion(json.loads(response.content))
        except openai.APIStatusError as error:
            answer = _failed(self._status(error))
        except openai.APITimeoutError:
            answer = _failed("the endpoint did not answer in time (teacher.timeout)")
        except openai.APIConnectionError as error:
            cause = error.__cause__
            answer = _failed(f"no connection to {self._endpoint()}: {clean(cause or error)}")
        except (ValueError, RecursionError):
            answer = _failed("the response is not JSON")
        spelled = "".join(token for token, _ in answer.get("logprobs", ()))
        if self._without_key(spelled) != spelled:
            del answer["logprobs"]
        return {k: self._without_key(v) if isinstance(v, str) else v for k, v in answer.items()}

    def _status(self, error: openai.APIStatusError) -> str:
        """What a refusal says.

        Raises:
          UserError: no other request would fare better.
        """
        code = error.status_code
        said = clean(self._without_key(error.message))
        advice = _ADVICE.get(code)
        if error.code == "insufficient_quota":
            advice = "The account has no credit left; run the same command again when it has."
        if advice:
            raise UserError(
                f"{self._endpoint()} answered {code}: {said} {advice} The answers before are kept."
            ) from None
        return f"the endpoint answered {code}: {said}"

    def _without_key(self, text: str) -> str:
        """An endpoint may repeat the key; it goes into no file and onto no screen."""
        key = self._client.api_key
        return text.replace(key, "[key]") if len(key) > 4 else text

    def _endpoint(self) -> str:
        return endpoint(str(self._client.base_url))


def endpoint(base_url: str) -> str:
    """An address without what may be secret in it."""
    parts = urllib.parse.urlsplit(base_url)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))


def _failed(reason: str) -> dict[str, Any]:
    return read_completion(None) | {"error": reason}
