"""Teachers as they are: reasoning models, finish reasons, errors with status 200, many samples."""

# ruff: noqa: F811 (fixtures)

import contextlib
import json

import pytest

from kpod_jax.cli import checks
from kpod_jax.config import defaults
from kpod_jax.teacher import NoAnswerError, teach
from kpod_jax.teacher.completions import judge_row, read_completion
from kpod_jax.teacher.questions import Question
from kpod_jax.utils.errors import UserError
from tests.teacher import endpoint as endpoints
from tests.teacher.conftest import (  # noqa: F401
    KEY,
    add,
    asked,
    config,
    endpoint,
    key,
    number_of,
    rows,
    summary,
    sums,
)

TEXT = "3 + 4 = 7. Therefore, the answer is 7."


def body(message=None, finish: object = "stop", **choice):
    """A chat completion with any message."""
    made = endpoints.completion(None)
    made["choices"] = [{"index": 0, "finish_reason": finish, "message": message} | choice]
    return made


def kept(response, source="answer", keep="right"):
    """The rationale that is kept of a response, or the reason why none is."""
    row = read_completion(response)
    if row["error"]:
        return row["error"]
    teacher = defaults.get_config().teacher
    teacher.keep, teacher.rationale_from = keep, source
    judged = judge_row(
        json.loads(json.dumps(row)), Question("0", "How many?", "7"), "number", teacher
    )
    return judged.reason or judged.rationale


THOUGHT, ANSWER = "3 and 4 make 7. So the answer is 7.", TEXT
MESSAGES = {
    "DeepSeek": {"content": ANSWER, "reasoning_content": THOUGHT},
    "vLLM": {"content": ANSWER, "reasoning": THOUGHT, "reasoning_content": None, "tool_calls": []},
    "both names": {"content": ANSWER, "reasoning": THOUGHT, "reasoning_content": THOUGHT},
    "OpenRouter": {
        "content": ANSWER,
        "reasoning": None,
        "reasoning_details": [
            {"type": "reasoning.encrypted", "data": "gAAAAA9"},
            {"type": "reasoning.text", "text": THOUGHT, "signature": "s9"},
        ],
    },
    "summary": {
        "content": ANSWER,
        "reasoning_details": [{"type": "reasoning.summary", "summary": THOUGHT}],
    },
    "LiteLLM": {"content": ANSWER, "thinking_blocks": [{"type": "thinking", "thinking": THOUGHT}]},
    "Ollama": {"content": ANSWER, "thinking": THOUGHT},
    "Anthropic": {
        "content": [
            {"type": "thinking", "thinking": THOUGHT, "signature": "9"},
            {"type": "redacted_thinking", "data": "9"},
            {"type": "text", "text": "3 + 4 = 7."},
            {"type": "text", "text": "Therefore, the answer is 7."},
        ]
    },
    "Mistral": {
        "content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]},
            {"type": "text", "text": ANSWER},
        ]
    },
    "Responses": {
        "content": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": THOUGHT}]},
            {"type": "output_text", "text": ANSWER, "annotations": []},
        ]
    },
    "Gemini": {"content": [{"text": THOUGHT, "thought": True}, {"text": ANSWER}]},
    "tags": {"content": f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"},
    "tags in a part": {
        "content": [{"type": "text", "text": f"<think>{THOUGHT}</think>{ANSWER}"}],
    },
    "closing tag": {"content": f"{THOUGHT}\n</think>\n\n{ANSWER}"},
    "closing tag left over": {"content": f"</think>\n\n{ANSWER}", "reasoning": THOUGHT},
    "Magistral": {"content": f"[THINK]{THOUGHT}[/THINK]{ANSWER}"},
    "Gemini tags": {"content": f"<thought>{THOUGHT}</thought>{ANSWER}"},
    "Seed": {"content": f"<seed:think>{THOUGHT}</seed:think>{ANSWER}"},
    "Kimi": {"content": f"◁think▷{THOUGHT}◁/think▷{ANSWER}"},
    "OpenThoughts": {"content": f"<|begin_of_thought|>{THOUGHT}<|end_of_thought|>{ANSWER}"},
    "gpt-oss": {
        "content": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant"
        f"<|channel|>final<|message|>{ANSWER}"
    },
}


@pytest.mark.parametrize("name", MESSAGES)
def test_thoughts(name):
    response = body(MESSAGES[name])
    assert kept(response) == "3 + 4 = 7."
    assert kept(response, "thought") == "3 and 4 make 7."
    assert kept(response, "both") == "3 and 4 make 7.\n\n3 + 4 = 7."


@pytest.mark.parametrize(
    ("message", "source", "expected"),
    [
        # Everything in the thought, as some servers do for models that did not think.
        ({"content": None, "reasoning_content": TEXT}, "thought", "3 + 4 = 7."),
        ({"content": "", "reasoning": TEXT}, "both", "3 + 4 = 7."),
        ({"content": [], "reasoning": TEXT}, "answer", "there is no rationale before the answer; "),
        # An answer alone is no rationale of a model that thought.
        ({"content": "7", "reasoning": "3 + 4 = 7"}, "answer", "there is no rationale"),
        ({"content": "**$7$**", "reasoning": "3 + 4 = 7"}, "both", "3 + 4 = 7"),
        ({"content": "\\boxed{7}", "reasoning": "3 + 4 = 7"}, "both", "3 + 4 = 7"),
        ({"content": "<think>3 + 4 = 7</think><answer>7</answer>"}, "both", "3 + 4 = 7"),
        ({"content": "The answer is 7.", "reasoning": "3 + 4 = 7"}, "thought", "3 + 4 = 7"),
        # What the text says counts, whatever the thought tried.
        ({"content": "So 8.", "reasoning": TEXT}, "thought", "its answer is 8"),
        (
            {"content": TEXT, "reasoning": "The answer is 8? No, 3 + 4 is 7."},
            "thought",
            "The answer is 8? No, 3 + 4 is 7.",
        ),
        ({"content": TEXT}, "thought", "there is no thought; "),
        ({"content": TEXT}, "both", "3 + 4 = 7."),
        ({"content": TEXT, "reasoning": None, "reasoning_details": []}, "both", "3 + 4 = 7."),
        ({"content": ["3 + 4 ", "= 7. The ans", "wer is 7."]}, "answer", "3 + 4 = 7."),
        ({"content": [{"type": "text", "text": {"value": TEXT}}]}, "answer", "3 + 4 = 7."),
        ({"content": None, "refusal": "I cannot help with 7."}, "answer", "refusal"),
        ({"content": [{"type": "refusal", "refusal": "No, not 7."}]}, "thought", "refusal"),
        ({"content": None, "tool_calls": [{"function": {"name": "7"}}]}, "both", "has no text"),
        ({"content": [{"type": "tool_use", "content": TEXT}]}, "both", "has no text"),
        ({"content": None, "reasoning": None}, "both", "has no text"),
        ({"content": {"type": "text", "text": TEXT}}, "answer", "3 + 4 = 7."),
    ],
)
def test_thoughts_and_answers_apart(message, source, expected):
    found = kept(body(message), source)
    assert found == expected or (expected[0].islower() and expected in found)


def test_another_choice_of_rationale_reads_the_ledger_again(config, endpoint, tmp_path):
    def reply(question, number):
        made = add(question)
        made["choices"][0]["message"]["reasoning_content"] = f"Let me add {number_of(question)}."
        return made

    endpoint.reply = reply
    teach(config, tmp_path)
    assert rows(tmp_path, "rationales.jsonl")[2]["rationale"] == "2 + 1 = 3."
    config.teacher.rationale_from = "thought"
    teach(config, tmp_path)
    assert rows(tmp_path, "rationales.jsonl")[2]["rationale"] == "Let me add 2."
    assert len(endpoint.bodies) == 6
    stored = {row["id"]: row for row in rows(tmp_path, "answers.jsonl")}["train-2"]
    assert stored["thought"] == "Let me add 2." and stored["text"].startswith("2 + 1 = 3. There")


def test_a_thought_that_used_up_the_tokens_is_stored_and_told():
    response = body({"content": None, "reasoning_content": "3 + 4 is"}, "length")
    assert read_completion(response)["thought"] == "3 + 4 is"
    for source in ("answer", "thought", "both"):
        assert kept(response, source).endswith("(finish_reason length); raise teacher.max_tokens")


def test_a_key_in_a_thought_is_not_stored(config, endpoint, tmp_path):
    endpoint.reply = lambda question, number: body({"content": "So 1.", "reasoning": f"{KEY} 7"})
    teach(config, tmp_path)
    assert KEY not in (tmp_path / "teacher" / "answers.jsonl").read_text()


WHOLE = (
    "stop STOP end_turn stop_sequence eos eos_token completed complete COMPLETE FINISH_REASON_STOP"
)
PARTIAL = (
    "length max_tokens MAX_TOKENS content_filter error abort cancelled tool_calls function_call "
    "SAFETY RECITATION OTHER refusal pause_turn incomplete insufficient_system_resource sensitive "
    "model_context_window_exceeded ERROR_TOXIC repetition network_error max_output_tokens"
)


@pytest.mark.parametrize("finish", [*WHOLE.split(), {"type": "stop", "matched": 2}])
def test_whole_texts(finish):
    assert kept(body({"content": TEXT}, finish)) == "3 + 4 = 7."
    assert kept(body({"content": "3 + 4 = 7"}, finish)) == "3 + 4 = 7"


@pytest.mark.parametrize("text", [TEXT, "3 + 4 = 7"])
@pytest.mark.parametrize("keep", ["right", "all"])
@pytest.mark.parametrize("finish", [*PARTIAL.split(), 7, {"type": "length", "length": 9}])
def test_partial_texts(finish, keep, text):
    name = finish["type"] if isinstance(finish, dict) else finish
    found = kept(body({"content": text}, finish), keep=keep)
    assert found.startswith(f"the text is not whole (finish_reason {name})")


@pytest.mark.parametrize("choice", [{"finish_reason": None}, {"finish_reason": ""}])
def test_a_text_without_a_finish_reason_is_whole_if_it_announces_its_answer(choice):
    assert kept(body({"content": TEXT}, **choice)) == "3 + 4 = 7."
    assert "finish_reason missing" in kept(body({"content": "3 + 4 = 7"}, **choice))


def test_finish_reasons_are_written_counted_and_paid_for(config, endpoint, tmp_path):
    finishes = ["stop", "length", "content_filter", "abort", "end_turn", "weird"]

    def reply(question, number):
        made = add(question)
        made["choices"][0]["finish_reason"] = finishes[number_of(question)]
        return made

    endpoint.reply = reply
    teach(config, tmp_path)
    told, bad = summary(tmp_path), rows(tmp_path, "rejected.jsonl")
    assert (told["kept"], told["answered"], told["completion_tokens"]) == (2, 5, 30)
    assert told["rejected"] == {
        "the text is not whole (finish_reason length)": 1,
        "the text is not whole (finish_reason content_filter)": 1,
        "no answer (finish_reason abort)": 1,
        "the text is not whole (finish_reason weird)": 1,
    }
    assert [row["id"][-1] for row in bad] == list("1235")
    assert all(f"finish_reason {finishes[int(row['id'][-1])]}" in row["reason"] for row in bad)
    assert all(row["text"].startswith(f"{row['id'][-1]} + 1 =") for row in bad)
    # Only the endpoint's own trouble is worth another request.
    endpoint.reply = add
    teach(config, tmp_path)
    assert asked(endpoint) == dict.fromkeys(range(6), 1) | {3: 2}
    assert summary(tmp_path)["kept"] == 3


def choice_error(code, text=""):
    return body({"content": text}, "error", error={"code": code, "message": "the provider's words"})


RETRIED = {
    "OpenRouter": {"error": {"message": "words", "code": 429, "metadata": {"raw": "slow down"}}},
    "rate limit": {
        "error": {"message": "words", "type": "requests", "code": "rate_limit_exceeded"}
    },
    "Anthropic": {"type": "error", "error": {"type": "overloaded_error", "message": "words"}},
    "Gemini": [{"error": {"code": 503, "message": "words", "status": "UNAVAILABLE"}}],
    "gRPC": {"error": {"message": "words", "status": "RESOURCE_EXHAUSTED"}},
    "FastChat": {"object": "error", "message": "words", "code": 42901},
    "vLLM": {"object": "error", "message": "words", "type": "InternalServerError", "code": 500},
    "text": {"error": "the words: server overloaded, try again"},
    "TGI": {"error": "words", "error_type": "overloaded"},
    "null choices": {"id": "c", "choices": None, "error": {"message": "words", "code": "502"}},
    "empty choices": {"choices": [], "error": {"message": "words", "type": "server_error"}},
    "MiniMax": {
        "choices": None,
        "base_resp": {"status_code": 1002, "status_msg": "words: rate limit"},
    },
    "Baidu": {"error_code": 18, "error_msg": "words: Open api qps rate limit reached"},
    "in the choice": choice_error(502),
    "flag": {"error": True, "message": "words: too many requests"},
    "Cloudflare": {"success": False, "errors": [{"code": 503, "message": "words"}]},
    "FastAPI": {"detail": "words: upstream timed out"},
}
FINAL = {
    "invalid": {"error": {"message": "words", "type": "invalid_request_error", "code": None}},
    "old vLLM": {"object": "error", "message": "words", "type": "BadRequestError", "code": 400},
    "FastChat": {"object": "error", "message": "words", "code": 40303},
    "text": {"error": "words: the prompt is too long"},
    "Gemini": [{"error": {"code": 400, "message": "words", "status": "INVALID_ARGUMENT"}}],
    "validation": {"detail": [{"loc": ["body"], "msg": "words", "type": "value_error"}]},
    "filter": {"error": {"message": "words", "code": "content_filter", "status": 400}},
    "context": {"error": {"message": "words", "code": "context_length_exceeded"}},
    "moderation": choice_error(403),
    "unknown": {"error": {"message": "words"}},
    "no message": {"error": {"words": 1}},
    "bare": {"message": "words"},
    "page": endpoints.raw(b"<!doctype html><html><title>words</title></html>", "text/html"),
}


@pytest.fixture
def delays(monkeypatch):
    """Waits of the client, which take no time."""
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr("openai._base_client.anyio.sleep", sleep)
    return slept


@pytest.mark.parametrize("name", RETRIED)
def test_errors_with_status_200_that_pass(config, endpoint, delays, tmp_path, name):
    config.data.train_examples, config.teacher.retries = 1, 2
    endpoint.reply = lambda question, number: RETRIED[name] if number < 2 else add(question)
    teach(config, tmp_path)
    assert len(delays) == 2 and summary(tmp_path)["kept"] == 1
    endpoint.reply = lambda question, number: RETRIED[name]
    with pytest.raises(NoAnswerError):
        teach(config, tmp_path / "other")
    assert len(endpoint.bodies) == 6
    (bad,) = rows(tmp_path / "other", "rejected.jsonl")
    assert "200" in bad["reason"] and "words" in bad["reason"]


@pytest.mark.parametrize("name", FINAL)
def test_errors_with_status_200_that_do_not(config, endpoint, delays, tmp_path, name):
    config.data.train_examples = 1
    endpoint.reply = lambda question, number: FINAL[name]
    with pytest.raises(NoAnswerError):
        teach(config, tmp_path)
    assert len(endpoint.bodies) == 1 and not delays
    (bad,) = rows(tmp_path, "rejected.jsonl")
    assert "words" in bad["reason"] and summary(tmp_path)["answered"] == 0


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ({"message": f"bad {KEY}", "code": "invalid_api_key"}, "OPENAI_API_KEY"),
        ({"message": "quota", "type": "insufficient_quota", "code": 429}, "credit"),
        ({"message": "Insufficient Balance", "code": 402}, "credit"),
        ({"message": "no m", "type": "NotFoundError", "code": 404}, "teacher.model"),
    ],
)
def test_errors_with_status_200_that_end_the_run(config, endpoint, tmp_path, error, advice):
    config.teacher.concurrency = 1
    endpoint.reply = lambda question, number: {"error": error}
    with pytest.raises(UserError, match=advice) as raised:
        teach(config, tmp_path)
    assert len(endpoint.bodies) == 1 and KEY not in str(raised.value)


def test_a_text_that_an_error_broke_off_is_stored(config, endpoint, delays, tmp_path):
    config.data.train_examples = 1
    endpoint.reply = lambda question, number: choice_error(502, "0 + 1 = 1")
    with pytest.raises(NoAnswerError):
        teach(config, tmp_path)
    (row,) = rows(tmp_path, "answers.jsonl")
    assert (row["text"], row["completion_tokens"]) == ("0 + 1 = 1", 5) and not delays
    assert "the provider's words" in row["error"] and summary(tmp_path)["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ({"status_code": 200, "body": body(MESSAGES["Anthropic"])}, "3 + 4 = 7."),
        ({"status_code": "200", "body": body(MESSAGES["DeepSeek"])}, "3 + 4 = 7."),
        (body({"content": TEXT}), "3 + 4 = 7."),
        ({"status_code": 200, "body": body({"content": TEXT}, "MAX_TOKENS")}, "MAX_TOKENS"),
        ({"status_code": 200, "body": {"error": {"message": "words", "code": 500}}}, "words"),
        ({"status_code": 400, "body": {"object": "error", "message": "words"}}, "words"),
        ({"status_code": 500, "body": {"error": "words"}}, "words"),
        ({"status_code": 500, "body": "words"}, "words"),
        (None, "no response"),
    ],
)
def test_batch_results(config, endpoint, tmp_path, response, expected):
    config.data.train_examples, config.teacher.batch = 1, "write"
    text = (tmp_path / "data" / "train.jsonl").read_text()
    (tmp_path / "data" / "train.jsonl").write_text(text.replace('"1"', '"7"'))
    teach(config, tmp_path)
    (line,) = (tmp_path / "teacher" / "batch" / "requests-1.jsonl").read_text().splitlines()
    result = {"custom_id": json.loads(line)["custom_id"], "response": response, "error": None}
    (tmp_path / "results.jsonl").write_text(json.dumps(result))
    config.teacher.batch, config.teacher.batch_results = "read", str(tmp_path / "results.jsonl")
    with contextlib.suppress(NoAnswerError):
        teach(config, tmp_path)
    found = [row["rationale"] for row in rows(tmp_path, "rationales.jsonl")]
    found += [row["reason"] for row in rows(tmp_path, "rejected.jsonl")]
    assert len(found) == 1 and expected in found[0]


FIELDS = [
    {"chat_template_kwargs": {"enable_thinking": True}},
    {"reasoning_effort": "low"},
    {"reasoning": {"effort": "high", "exclude": False}},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"seed": 3},
    {"top_k": 20, "min_p": 0.0, "repetition_penalty": 1.05},
    {"stop": ["\nQ:"], "logit_bias": {"50256": -100}},
    {"response_format": {"type": "text"}},
    {"service_tier": "flex", "store": False, "metadata": {"run": "ä"}},
    {"guided_regex": '[0-9]+"', "stop_token_ids": [1], "include_stop_str_in_output": True},
    {"provider": {"order": ["a"], "allow_fallbacks": False}},
    {"extra_body": {"google": {"thinking_config": {"include_thoughts": True}}}},
    {"max_completion_tokens": 4096},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: next(iter(fields)))
def test_any_request_field(config, endpoint, tmp_path, fields):
    config.data.train_examples, config.teacher.extra_body = 1, json.dumps(fields)
    checks.check(config)
    teach(config, tmp_path)
    (sent,) = endpoint.bodies
    plain = {"model": "m", "temperature": 0.0, "top_p": 1.0, "max_tokens": 512}
    if "max_completion_tokens" in fields:
        del plain["max_tokens"]
    assert {**sent, "messages": 0} == plain | fields | {"messages": 0}
    config.teacher.batch = "write"
    teach(config, tmp_path / "batch")
    path = tmp_path / "batch" / "teacher" / "batch" / "requests-1.jsonl"
    assert json.loads(path.read_text())["body"] == sent


def test_fields_take_precedence_and_null_leaves_one_out(config, endpoint, tmp_path):
    config.data.train_examples, config.teacher.samples = 1, 2
    config.teacher.extra_body = '{"temperature": 1, "top_p": null, "seed": 5, "user": null}'
    checks.check(config)
    teach(config, tmp_path)
    first, second = sorted(endpoint.bodies, key=lambda sent: sent["seed"])
    assert first.pop("messages") == second.pop("messages")
    assert first == {"model": "m", "temperature": 1, "max_tokens": 512, "seed": 5}
    assert second == first | {"seed": 6}  # One seed would give one answer.


def test_answers_with_other_fields_are_not_mixed(config, endpoint, tmp_path):
    config.teacher.extra_body = '{"seed": 1, "top_k": 2}'
    teach(config, tmp_path)
    config.teacher.extra_body = '{ "top_k":2,"seed":1 }'
    teach(config, tmp_path)
    assert len(endpoint.bodies) == 6
    config.teacher.extra_body = '{"seed": 2, "top_k": 2}'
    with pytest.raises(UserError, match=r"teacher\.extra_body was"):
        teach(config, tmp_path)
    teach(config, tmp_path / "other")
    assert len(endpoint.bodies) == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'top_k': 20}", "JSON object"),
        ("top_k=20", "JSON object"),
        ("[1]", "JSON object"),
        ('"x"', "JSON object"),
        ('{"top_k": NaN}', "JSON object"),
        ("[" * 100_000, "JSON object"),
        ('{"messages": []}', r"teacher\.prompt"),
        ('{"model": "x"}', r"teacher\.model"),
        ('{"n": 4}', r"teacher\.samples"),
        ('{"stream": true}', "not streamed"),
        ('{"top_logprobs": 4}', r"teacher\.logprobs"),
        ('{"api_key": "pa55word"}', "OPENAI_API_KEY"),
        ('{"headers": [{"Authorization": "Bearer pa55word"}]}', "OPENAI_API_KEY"),
        ('{"user": "' + KEY + '"}', "OPENAI_API_KEY"),
    ],
)
def test_fields_that_cannot_be_sent(key, text, message):
    config = defaults.get_config()
    config.teacher.extra_body = text
    with pytest.raises(UserError, match=message) as error:
        checks.check(config)
    assert "pa55word" not in str(error.value) and KEY not in str(error.value)


def sampled(texts):
    """Replies with the texts in turn, per question; {} stands for the right answer."""
    counts = {}

    def reply(question, number):
        a = number_of(question)
        counts[a] = counts.get(a, -1) + 1
        return endpoints.completion(texts[counts[a] % len(texts)].format(a + 1))

    return reply


@pytest.mark.parametrize(
    ("texts", "k", "sent", "rationales"),
    [
        (["A {}. The answer is {}."], 0, 6, ["A {}."]),
        (["A {0}. The answer is {0}.", "a\n {0}.  The answer is {0}!"], 0, 6, ["A {}."]),
        (["A. The answer is {}.", "B. The answer is {}."], 0, 6, ["A.", "B."]),
        (["A. The answer is {}.", "B. The answer is {}."], 1, 1, ["A."]),
        (["A. The answer is {}.", "B. The answer is {}."], 2, 2, ["A.", "B."]),
        (
            ["A. The answer is {}.", "A. The answer is {}.", "B. So the answer is {}."],
            2,
            3,
            ["A.", "B."],
        ),
        (["A. The answer is 99.", "B. The answer is {}."], 1, 2, ["B."]),
        (["A. The answer is 99."], 1, 6, []),
        (["I do not know.", "", "C. The answer is {}."], 1, 3, ["C."]),
        (["A. The answer is {}."], 3, 6, ["A."]),
        (
            ["A. The answer is {}.", "B. The answer is 99.", "C. The answer is {}."],
            2,
            3,
            ["A.", "C."],
        ),
    ],
)
def test_rejection_sampling(config, endpoint, tmp_path, texts, k, sent, rationales):
    texts = [text.replace("{}", "{0}") for text in texts]
    endpoint.reply = sampled(texts)
    config.teacher.temperature, config.teacher.samples = 0.7, 6
    config.teacher.rationales_per_question = k
    config.teacher.concurrency = 1
    checks.check(config)
    teach(config, tmp_path)
    assert asked(endpoint) == dict.fromkeys(range(6), sent)
    found = {}
    for row in rows(tmp_path, "rationales.jsonl"):
        found.setdefault(row["id"], []).append(row["rationale"])
    expected = {f"train-{n}": [r.format(n + 1) for r in rationales] for n in range(6)}
    assert found == {id_: each for id_, each in expected.items() if each}
    told = summary(tmp_path)
    assert told["questions_by_rationales"] == {str(len(rationales)): 6}
    errors = 6 * texts.count("") * bool(k)
    assert told["rejected"].get("not needed", 0) == 36 - 6 * sent
    assert told["kept"] + sum(told["rejected"].values()) == 36 and told["asked"] == 6 * sent
    assert told["answered"] == 6 * sent - errors
    endpoint.reply = add
    teach(config, tmp_path)
    missing = errors if len(rationales) < k else 0
    assert len(endpoint.bodies) == 6 * sent + missing


def test_a_smaller_k_selects_from_the_ledger(config, endpoint, tmp_path):
    endpoint.reply = sampled([f"{c}. The answer is {{}}." for c in "ABC"])
    config.teacher.temperature, config.teacher.samples = 0.7, 3
    teach(config, tmp_path)
    config.teacher.rationales_per_question = 2
    teach(config, tmp_path)
    assert len(endpoint.bodies) == 18
    kept_samples = [(row["id"], row["sample"]) for row in rows(tmp_path, "rationales.jsonl")]
    assert kept_samples == [(f"train-{n}", sample) for n in range(6) for sample in (0, 1)]
    assert summary(tmp_path)["rejected"] == {"its question has enough rationales": 6}


def test_batches_leave_out_questions_that_have_enough(config, endpoint, tmp_path):
    endpoint.reply = lambda question, number: (
        endpoints.completion("So 99.") if number_of(question) == 2 else add(question)
    )
    config.teacher.temperature = 0.7
    teach(config, tmp_path)
    config.teacher.samples, config.teacher.rationales_per_question = 3, 1
    config.teacher.batch = "write"
    teach(config, tmp_path)
    lines = (tmp_path / "teacher" / "batch" / "requests-1.jsonl").read_text().splitlines()
    ids = [json.loads(line)["custom_id"].split("#")[:2] for line in lines]
    assert ids == [["train-2", "1"], ["train-2", "2"]]


def test_distributions_start_where_the_rationale_does(config, endpoint, tmp_path):
    config.data.train_examples = config.teacher.logprobs = 1
    tokens = ["<think>", "Easy", ".", "</think>", "\n\n", "0 + 1", " = 1.", " The answer is 1."]

    def reply(question, number):
        made = body({"content": "".join(tokens)})
        made["choices"][0]["logprobs"] = {
            "content": [{"token": t, "logprob": -0.5, "top_logprobs": []} for t in tokens]
        }
        return made

    endpoint.reply = reply
    teach(config, tmp_path)
    (row,) = rows(tmp_path, "distributions.jsonl")
    assert row["rationale"] == "0 + 1 = 1." and row["tokens"] == tokens[5:]
    assert row["top_logprobs"][0] == {"0 + 1": -0.5}
