"""A key that an endpoint repeats, in any form, is neither stored nor printed."""

import base64
import collections
import json
import urllib.parse

import pytest

from kpod_jax.config import defaults
from kpod_jax.teacher import teach
from kpod_jax.utils import environment, files, redaction
from kpod_jax.utils.errors import UserError
from tests.teacher import endpoint as endpoints
from tests.teacher.conftest import KEY as SHORT_KEY
from tests.teacher.conftest import add, config, endpoint, key, rows, sums  # noqa: F401

KEY = "sk-proj-Ab3/dEfGh1jKlMnOpQr+tUvWxYz0123456789"
DATA = KEY.encode()
FORMS = {
    "verbatim": KEY,
    "inside": f"x{KEY}y",
    "lower": KEY.lower(),
    "upper": KEY.upper(),
    "first half": KEY[:24],
    "second half": KEY[-24:],
    "all but the ends": KEY[1:-1],
    "url": urllib.parse.quote(KEY, safe=""),
    "url, inside": "?token=" + urllib.parse.quote(KEY) + "&x=1",
    "base64": base64.b64encode(DATA).decode(),
    "base64, 1 off": base64.b64encode(b"k" + DATA).decode(),
    "base64, 2 off": base64.b64encode(b"k=" + DATA + b"!").decode(),
    "base64, URL": base64.urlsafe_b64encode(b"Bearer " + DATA).decode(),
    "hex": DATA.hex(),
    "twice": KEY + KEY,
}


@pytest.fixture
def long_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def leaks(text: str) -> bool:
    """Whether half of the key, or of a form of it, is in a text."""
    forms = (KEY.lower(), FORMS["url"].lower(), FORMS["hex"])
    parts = [form[i : i + 23] for form in forms for i in range(len(form) - 22)]
    encoded = [FORMS[name] for name in FORMS if name.startswith("base64")]
    parts += [form[i : i + 30].lower() for form in encoded for i in range(10, len(form) - 39)]
    return any(part in text.lower() for part in parts)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_key_is_redacted(long_key, form):
    assert leaks(FORMS[form])
    found = redaction.redact({"a": [FORMS[form], ({FORMS[form]: 1},)], FORMS[form]: None})
    assert not leaks(json.dumps(found)) and "[key]" in json.dumps(found)
    assert redaction.redact(f"before {FORMS[form]} after").startswith("before ")


@pytest.mark.parametrize(
    "text", ["sk-proj-", "Ab3", "The answer is 0123456789.", "", "EMPTY", "12345678901234567890"]
)
def test_other_text_is_left_as_it_is(long_key, text):
    assert redaction.redact(text) == text


@pytest.mark.parametrize(
    ("value", "text"), [("", "a [key] b"), ("none", "none"), ("abcd", "abcde")]
)
def test_no_key_and_words_redact_nothing(monkeypatch, value, text):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    assert redaction.redact(text) == text


def echo(place: str, said: str):
    """A completion that repeats the key in one place."""
    body = add("How much is 1 + 1?")
    choice = body["choices"][0]
    entry = {"token": said, "logprob": -0.1}
    good = {"token": choice["message"]["content"], "logprob": -0.1, "top_logprobs": []}

    def piece(letter: str) -> dict:
        return good | {"top_logprobs": [{"token": letter, "logprob": -1}]}

    change = {
        "text": lambda: choice["message"].update(content=f"{said}: 1 + 1 = 2. The answer is 2."),
        "thought": lambda: choice["message"].update(reasoning_content=f"{said} is the key."),
        "model": lambda: body.update(model=said),
        "finish": lambda: choice.update(finish_reason=said),
        "token": lambda: choice.update(logprobs={"content": [entry | {"top_logprobs": []}]}),
        "top": lambda: choice.update(logprobs={"content": [good | {"top_logprobs": [entry]}]}),
        "pieces": lambda: choice.update(logprobs={"content": list(map(piece, said))}),
        "refusal": lambda: choice["message"].update(content=None, refusal=said),
        "error": lambda: body.update(error={"message": f"{'x' * 280} {said}"}, choices=[]),
        "code": lambda: body.update(error={"message": "bad", "code": said}, choices=[]),
    }[place]
    change()
    return body


@pytest.mark.parametrize(
    "place",
    ["text", "thought", "model", "finish", "token", "top", "pieces", "refusal", "error", "code"],
)
def test_no_file_of_a_teacher_holds_the_key(config, endpoint, tmp_path, capsys, place):  # noqa: F811
    config.data.train_examples, config.teacher.logprobs, config.teacher.retries = 1, 2, 0
    config.teacher.keep = "all"
    endpoint.reply = lambda question, number: echo(place, SHORT_KEY)
    try:
        said = teach(config, tmp_path)
    except UserError as error:
        said = str(error)
    written = [path for path in (tmp_path / "teacher").rglob("*") if path.is_file()]
    assert len(written) >= 3
    shown = capsys.readouterr()
    for text in (said, shown.out, shown.err, *(path.read_text() for path in written)):
        assert SHORT_KEY not in text and SHORT_KEY[:-2] not in text and SHORT_KEY[:18] not in text
    if place == "pieces":
        assert "logprobs" not in rows(tmp_path, "answers.jsonl")[0]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_no_error_holds_the_key(config, endpoint, tmp_path, status):  # noqa: F811
    config.data.train_examples, config.teacher.retries = 1, 0
    long = f"{'x' * 290}{SHORT_KEY}"  # What is shown would be cut within the key.
    endpoint.reply = lambda question, number: endpoints.status(status, long)
    try:
        said = teach(config, tmp_path)
    except UserError as error:
        said = str(error)
    texts = [path.read_text() for path in (tmp_path / "teacher").glob("*.jsonl")]
    assert not any("sk-a-secret" in text for text in (said, *texts))


def test_config_json_holds_no_key(long_key, tmp_path):
    written = defaults.get_config()
    written.teacher.extra_body = json.dumps({"user": KEY})
    environment.write_config(tmp_path / "config.json", written)
    written = files.read_json(tmp_path / "config.json")
    assert json.loads(written["config"]["teacher"]["extra_body"]) == {"user": "[key]"}


def test_ids_and_questions_are_not_the_endpoints(config, endpoint, monkeypatch, tmp_path):  # noqa: F811
    """A question may hold what looks like the key: it stays the same, or it is asked again."""
    config.data.train_examples = 1
    teach(config, tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", rows(tmp_path, "rationales.jsonl")[0]["question"])
    teach(config, tmp_path)
    assert len(endpoint.bodies) == 1
    assert "[key]" not in rows(tmp_path, "rationales.jsonl")[0]["question"]


def test_named_tuples_are_redacted(long_key):
    pair = collections.namedtuple("pair", "a b")
    assert redaction.redact([pair(KEY, 1)]) == [("[key]", 1)]


@pytest.mark.parametrize("placeholder", ["EMPTY", "none", "12345", "token-abc123"])
def test_a_placeholder_is_no_secret(config, endpoint, monkeypatch, tmp_path, placeholder):  # noqa: F811
    """Local servers ask for any key; questions and answers with that word stay as they are."""
    monkeypatch.setenv("OPENAI_API_KEY", placeholder)
    config.data.train_examples = 1
    text = f"The box holds {placeholder.lower()}. Therefore, the answer is 1."
    endpoint.reply = lambda question, number: endpoints.completion(text)
    teach(config, tmp_path)
    assert rows(tmp_path, "rationales.jsonl")[0]["rationale"].startswith(text.split(". ")[0])
    teach(config, tmp_path)
    assert len(endpoint.bodies) == 1
