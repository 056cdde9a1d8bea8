"""Endpoints that drop, delay, throttle, answer garbage, refuse, and repeat secrets."""

import json
import re
import threading

import pytest

from kpod_jax.teacher import NoAnswerError, ask, teach
from kpod_jax.utils.errors import UserError
from tests.teacher import endpoint as endpoints
from tests.teacher.conftest import KEY, add, asked, number_of, rows, summary

PACE = ask.Pace  # Tests put another in its place.


@pytest.fixture
def delays(monkeypatch):
    """What the client would have slept between its tries."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("openai._base_client.anyio.sleep", sleep)
    return slept


def test_lost_connections_and_server_errors_are_tried_again(config, endpoint, delays, tmp_path):
    def reply(question, number):
        tries = asked(endpoint)[number_of(question)]
        troubles = [endpoints.drop, endpoints.status(500), endpoints.status(503)]
        return troubles[tries - 1] if tries <= 3 else add(question)

    endpoint.reply = reply
    teach(config, tmp_path)
    assert asked(endpoint) == dict.fromkeys(range(6), 4)
    assert summary(tmp_path)["kept"] == 6 and len(delays) == 18
    # The third wait is the longest: they grow, each within its jitter.
    assert sum(delay >= 1.5 for delay in delays) == 6 and max(delays) <= 2.0


def test_silence_is_tried_again(config, endpoint, delays, tmp_path):
    woken = threading.Event()

    def reply(question, number):
        return add(question) if number else lambda handler: woken.wait(20) and None

    endpoint.reply = reply
    config.data.train_examples, config.teacher.timeout = 1, 0.5
    teach(config, tmp_path)
    woken.set()
    assert len(endpoint.bodies) == 2 and summary(tmp_path)["kept"] == 1


def test_retry_after_holds_every_request(config, endpoint, delays, monkeypatch, tmp_path):
    now, turns = [0.0], []

    async def sleep(seconds: float) -> None:
        turns.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(ask, "Pace", lambda rate: PACE(rate, lambda: now[0], sleep))
    endpoint.reply = lambda question, number: (
        add(question) if number else endpoints.status(429, retry_after="7")
    )
    config.teacher.concurrency = 1
    teach(config, tmp_path)
    assert delays == [7.0]  # The request itself.
    assert turns == [7.0]  # And any other that would be sent meanwhile.
    assert len(endpoint.bodies) == 7 and summary(tmp_path)["kept"] == 6


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (endpoints.raw(b"<html>busy</html>", "text/html"), "not JSON"),
        (endpoints.raw(b'{"choices": [{"mess'), "not JSON"),
        (endpoints.raw(b"[" * 100_000), "not JSON"),
        (endpoints.raw(b"[]"), "no choices"),
        (endpoints.raw(b'{"choices": null}'), "no choices"),
        (endpoints.completion("x", choices=[]), "no choices"),
        (endpoints.completion(""), "no text"),
        (endpoints.completion(None, "content_filter"), "content_filter"),
        (endpoints.completion({"a": 1}), "no text"),
        (endpoints.status(400, "too long\x1b[31m a prompt"), "400: .*too long.* a prompt"),
    ],
)
def test_a_useless_response_is_no_answer_and_asked_again_by_the_next_run(
    config, endpoint, tmp_path, reply, reason
):
    endpoint.reply = lambda question, number: reply if "2 + 1" in question else add(question)
    teach(config, tmp_path)
    (bad,) = rows(tmp_path, "rejected.jsonl")
    assert bad["id"] == "train-2" and re.search(reason, bad["reason"])
    assert "\x1b" not in bad["reason"]
    assert summary(tmp_path)["answered"] == 5 and len(endpoint.bodies) == 6
    endpoint.reply = add
    teach(config, tmp_path)
    assert asked(endpoint) == dict.fromkeys(range(6), 1) | {2: 2}
    assert summary(tmp_path)["kept"] == 6 and not rows(tmp_path, "rejected.jsonl")


def test_a_request_that_fails_to_the_end_is_reported_and_asked_again(
    config, endpoint, delays, tmp_path
):
    endpoint.reply = lambda question, number: (
        endpoints.status(500, "overloaded") if "2 + 1" in question else add(question)
    )
    config.teacher.retries = 2
    teach(config, tmp_path)
    (bad,) = rows(tmp_path, "rejected.jsonl")
    assert "500" in bad["reason"] and "overloaded" in bad["reason"]
    assert asked(endpoint)[2] == 3
    endpoint.reply = add
    teach(config, tmp_path)
    assert asked(endpoint) == dict.fromkeys(range(6), 1) | {2: 4}


def test_half_a_character_and_a_missing_usage_do_no_harm(config, endpoint, tmp_path):
    text = "\ud83d 0 + 1 = 1. Therefore, the answer is 1."
    body = json.dumps({"choices": [{"finish_reason": None, "message": {"content": text}}]})
    endpoint.reply = lambda question, number: endpoints.raw(body.encode())
    config.data.train_examples = 1
    teach(config, tmp_path)
    assert rows(tmp_path, "rationales.jsonl")[0]["rationale"] == "? 0 + 1 = 1."
    assert summary(tmp_path)["answers_without_token_counts"] == 1


@pytest.mark.parametrize(
    ("code", "name", "advice"),
    [
        (401, "", "OPENAI_API_KEY"),
        (403, "", "account"),
        (404, "", "teacher.model"),
        (429, "insufficient_quota", "credit"),
    ],
)
def test_what_no_retry_mends_ends_the_run_at_once(
    config, endpoint, delays, tmp_path, code, name, advice
):
    endpoint.reply = lambda question, number: (
        add(question)
        if number == 0
        else endpoints.status(code, f"bad key {KEY}", code_name=name, x_should_retry="false")
    )
    config.teacher.concurrency = 1
    with pytest.raises(UserError, match=f"answered {code}.*bad key") as error:
        teach(config, tmp_path)
    assert advice in str(error.value)
    assert len(endpoint.bodies) == 2 and not delays
    assert KEY not in str(error.value)
    # What was paid for can be used.
    assert len(rows(tmp_path, "rationales.jsonl")) == 1
    assert summary(tmp_path)["rejected"] == {"not asked yet": 5}


def test_an_endpoint_that_only_fails_ends_the_run(config, endpoint, sums, delays, tmp_path):
    text = "".join(
        json.dumps({"question": f"How much is {n} + 1?", "answer": "1"}) + "\n" for n in range(90)
    )
    (sums / "train.jsonl").write_text(text)
    endpoint.reply = lambda question, number: endpoints.status(400, "unknown parameter top_p")
    with pytest.raises(NoAnswerError, match=r"All 2\d requests failed: 2\d × .*parameter top_p"):
        teach(config, tmp_path)
    assert len(endpoint.bodies) <= 20 + config.teacher.concurrency


def test_nothing_listens(config, delays, tmp_path):
    config.teacher.base_url = "http://127.0.0.1:1/v1"
    config.teacher.retries = 1
    with pytest.raises(NoAnswerError, match="All 6 requests failed: 6 × no connection to"):
        teach(config, tmp_path)
    reasons = {row["reason"] for row in rows(tmp_path, "rejected.jsonl")}
    assert len(reasons) == 1 and "no connection to http://127.0.0.1:1/v1" in reasons.pop()


def test_the_key_is_in_no_file_and_no_output(config, endpoint, tmp_path, capfd, caplog):
    # An endpoint that repeats it in every place where it could be written down.
    def reply(question, number):
        said = f"{KEY} 0. Therefore, the answer is {number_of(question) + 1}."
        if number % 2:
            return endpoints.status(400, f"{KEY} is wrong")
        return endpoints.completion(said, KEY if number % 4 else "stop", model=KEY)

    endpoint.reply = reply
    caplog.set_level(10)
    print(teach(config, tmp_path))
    assert endpoint.keys[0] == f"Bearer {KEY}" and rows(tmp_path, "rationales.jsonl")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    out, err = capfd.readouterr()
    assert KEY not in out + err + caplog.text


def test_a_local_server_needs_no_key_and_openai_does(config, endpoint, monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY")
    teach(config, tmp_path)
    assert len(rows(tmp_path, "rationales.jsonl")) == 6
    config.teacher.base_url = ""
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        teach(config, tmp_path / "other")


def test_the_address_may_come_from_the_environment(config, endpoint, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url.replace("//", "//user:pa55word@"))
    config.teacher.base_url = ""
    teach(config, tmp_path)
    assert len(endpoint.bodies) == 6
    assert "pa55word" not in capsys.readouterr().out
