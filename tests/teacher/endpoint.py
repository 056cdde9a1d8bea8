"""A local endpoint that answers chat completions as a test tells it to."""

import http.server
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

Reply = dict[str, Any] | Callable[["Handler"], None]


def completion(text: Any, finish: str = "stop", **fields: Any) -> dict[str, Any]:
    """The body of a chat completion, of 10 prompt and 5 completion tokens."""
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "served",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": text},
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    } | fields


def status(code: int, message: str = "no", *, code_name: str = "", **headers: str) -> Reply:
    """An error, as OpenAI tells it; `retry_after="7"` is the header Retry-After."""
    body = {"error": {"message": message, "type": "t", "param": None, "code": code_name or None}}

    def send(handler: "Handler") -> None:
        handler.send(code, json.dumps(body).encode(), **headers)

    return send


def raw(body: bytes, kind: str = "application/json") -> Reply:
    """A response of any bytes."""
    return lambda handler: handler.send(200, body, content_type=kind)


def drop(handler: "Handler") -> None:
    """Resets the connection."""
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.close_connection = True
    handler.wfile = handler.connection.makefile("wb")  # What is flushed at the end goes nowhere.
    handler.connection.close()


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: "Endpoint"  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        with self.server.lock:
            number = len(self.server.bodies)
            self.server.bodies.append(body)
            self.server.keys.append(self.headers["Authorization"])
        reply = self.server.reply(question, number)
        if callable(reply):
            reply(self)
        else:
            self.send(200, json.dumps(reply).encode())

    def send(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in ({"content_type": "application/json"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Endpoint(http.server.ThreadingHTTPServer):
    """Listens at `url` on a free port; `reply(question, number)` decides.

    Attributes:
      bodies: of all requests, in the order of their arrival.
      keys: their Authorization.
    """

    daemon_threads = True

    def __init__(self, reply: Callable[[str, int], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.lock = reply, threading.Lock()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that a test cuts are no news."""


def serving(reply: Callable[[str, int], Reply]) -> Iterator[Endpoint]:
    """Serves until the generator goes on."""
    with Endpoint(reply) as endpoint:
        thread = threading.Thread(target=endpoint.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield endpoint
        endpoint.shutdown()
        thread.join()
