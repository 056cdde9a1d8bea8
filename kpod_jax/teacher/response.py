"""Bounds on responses: bytes of a body, and seconds until it is complete."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai

from kpod_jax.config.defaults import Config

# A body's bytes: some for every response, and some for every token, alone or among alternatives.
_BYTES, _BYTES_OF_TOKEN = 1 << 23, 200


class _TooLarge(Exception):
    """A body has more bytes than are read."""


def maximum_bytes(teacher: Config) -> int:
    """Returns the bytes that a response to a request can need."""
    return _BYTES + _BYTES_OF_TOKEN * teacher.max_tokens * (1 + teacher.logprobs)


class BoundedClient(openai.DefaultAsyncHttpxClient):
    """Client that gives up a response that is too large or takes too long.

    The caller then gets a response that must not be retried, whose extension "refused" is the
    reason.
    """

    def __init__(self, maximum: int, seconds: float, before: Callable[[], Awaitable[None]]) -> None:
        """Initializes the client.

        Args:
          maximum: maximum bytes of a body, decompressed.
          seconds: maximum seconds of a request, from sending it to the end of the response; 0: no
            limit.
          before: is awaited before each request; the time it takes does not count.
        """
        super().__init__()
        self._maximum, self._seconds, self._before = maximum, seconds or None, before

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Sends a request; see httpx2."""
        await self._before()
        limit = asyncio.timeout(self._seconds)
        try:
            async with limit:
                return await super().send(request, **options)
        except TimeoutError:
            if not limit.expired():
                raise
            reason = (
                f"the response was not complete after {self._seconds:g} s (teacher.total_timeout)"
            )
        except _TooLarge:
            reason = f"the response has more than {self._maximum:,} bytes"
        return httpx2.Response(
            400,
            headers={"x-should-retry": "false"},
            content=b"",
            request=request,
            extensions={"refused": reason},
        )

    async def read(self, response: httpx2.Response) -> None:
        """Reads a response's body; an event hook for responses."""
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._maximum:
            raise _TooLarge
        parts, size = [], 0
        async for part in response.aiter_bytes():
            parts.append(part)
            size += len(part)
            if size > self._maximum:
                raise _TooLarge
        response._content = b"".join(parts)  # As `aread` does.
