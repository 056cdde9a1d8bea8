"""Teachers whose responses do not end, and runs in which requests fail."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from kpod_jax.teacher import NoAnswerError, response, teach
from tests.teacher import endpoint as endpoints
from tests.teacher.conftest import add, config, endpoint, key, number_of, rows, summary, sums

__all__ = ["config", "endpoint", "key", "sums"]  # Fixtures.
OPEN = b'{"choices": [{"message": {"content": "'


def stream(*parts: bytes, length: int | None = None, pause: float = 0.0, encoding: str = ""):
    """A response that repeats its last part without end."""

    def reply(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        if encoding:
            handler.send_header("Content-Encoding", encoding)
        if length is not None:
            handler.send_header("Content-Length", str(length))
        handler.close_connection = True
        handler.end_headers()
        try:
            for part in parts[:-1]:
                handler.wfile.write(part)
            while True:
                handler.wfile.write(parts[-1])
                handler.wfile.flush()
                time.sleep(pause)
        except OSError:
            pass

    return reply


def trickle_headers(handler):
    """One header's bytes, one by one."""
    try:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        handler.close_connection = True


BOMB = gzip.compress(b" " * (256 << 20))


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (stream(OPEN, b"x" * 65536, length=10**12), "more than 8,491,008 bytes"),
        (stream(OPEN, b"x" * 65536), "more than 8,491,008 bytes"),
        (stream(b" " * 65536), "more than 8,491,008 bytes"),
        (stream(b"[" * 65536), "more than 8,491,008 bytes"),
        (stream(BOMB, encoding="gzip"), "more than 8,491,008 bytes"),
        (stream(OPEN, b"x", pause=0.3), r"not complete after 2 s \(teacher.total_timeout\)"),
        (stream(b"\n", pause=0.3), r"not complete after 2 s \(teacher.total_timeout\)"),
        (stream(OPEN, b"x", pause=0.3, length=10**6), r"not complete after 2 s"),
        (trickle_headers, "not complete after 2 s"),
        (endpoints.raw(b"[" * 100_000), "not JSON"),
        (endpoints.raw(b'{"choices":' * 100_000), "not JSON"),
        (endpoints.raw(json.dumps({"choices": [{"message": "x" * 10**6}]}).encode()), "no text"),
    ],
)
def test_a_response_without_end_is_given_up_once(config, endpoint, tmp_path, reply, reason):
    endpoint.reply = lambda question, number: reply if "2 + 1" in question else add(question)
    config.teacher.total_timeout = 2.0
    start = time.monotonic()
    report = teach(config, tmp_path)
    assert time.monotonic() - start < 20
    (bad,) = rows(tmp_path, "rejected.jsonl")
    assert bad["id"] == "train-2" and re.search(reason, bad["reason"])
    assert summary(tmp_path)["kept"] == 5 and len(endpoint.bodies) == 6
    assert "1 of 6 requests failed: 1 × " in report and re.search(reason, report)


def test_what_a_request_asks_for_is_not_too_large(config, endpoint, tmp_path):
    config.teacher.max_tokens, config.teacher.logprobs = 2000, 20
    assert response.maximum_bytes(config.teacher) == (1 << 23) + 200 * 2000 * 21
    padding = " " * ((1 << 23) + 10**6)
    endpoint.reply = lambda question, number: endpoints.raw(
        (json.dumps(add(question)) + padding).encode()
    )
    teach(config, tmp_path)
    assert summary(tmp_path)["kept"] == 6


def test_waiting_for_its_turn_does_not_count(config, endpoint, tmp_path):
    config.teacher.total_timeout, config.teacher.requests_per_minute = 0.5, 300.0
    teach(config, tmp_path)
    assert summary(tmp_path)["kept"] == 6


@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (endpoints.status(400, "unknown parameter top_p"), "400: unknown parameter top_p"),
        (endpoints.raw(b"<html>no</html>", "text/html"), "the response is not JSON: no"),
        (endpoints.completion(""), "the response has no text"),
        (endpoints.raw(b"{}"), "the response has no choices"),
    ],
)
def test_a_run_without_any_answer_fails(config, endpoint, tmp_path, count, reply, reason):
    endpoint.reply = lambda question, number: reply
    config.data.train_examples = count
    failed = f"All {count} requests failed: {count} × .*{reason}"
    with pytest.raises(NoAnswerError, match=failed) as ended:
        teach(config, tmp_path)
    assert ended.value.exit_code == 1
    assert summary(tmp_path)["asked"] == count and summary(tmp_path)["answered"] == 0


def test_several_reasons_are_counted(config, endpoint, tmp_path):
    replies = {0: endpoints.raw(b"{}"), 1: endpoints.raw(b"{}"), 2: endpoints.completion("")}
    endpoint.reply = lambda question, number: replies.get(number_of(question), add(question))
    report = teach(config, tmp_path)
    assert re.search(
        r"3 of 6 requests failed: 2 × the response has no choices; 1 × the resp.* no text", report
    )
    endpoint.reply = add
    assert "failed" not in teach(config, tmp_path)
    assert "failed" not in teach(config, tmp_path)  # Nothing to ask.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "Terminated"), (signal.SIGINT, 130, "Interrupted")],
)
def test_a_signal_ends_the_run_with_its_summary(
    config, endpoint, sums, tmp_path, number, code, word
):
    endpoint.reply = lambda question, count: (
        add(question) if count < 2 else lambda handler: time.sleep(60)
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "kpod_jax", "--mode=teach", f"--workdir={tmp_path}"),
            *("--config=configs/quickstart.py", "--config.data.name=jsonl"),
            *(f"--config.data.path={sums}", "--config.data.train_examples=0"),
            "--config.weighting.weights=uniform",
            *("--config.teacher.model=m", f"--config.teacher.base_url={endpoint.url}"),
        ],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(600):
        if len(endpoint.bodies) >= 4:
            break
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"{word}: teach: 2 of 6 answered" in error and "Traceback" not in error
    assert summary(tmp_path)["rejected"]["not asked yet"] == 4
