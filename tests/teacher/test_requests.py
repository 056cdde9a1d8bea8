"""What is asked, and with which settings."""

import pytest

from kpod_jax.cli import checks
from kpod_jax.config import defaults
from kpod_jax.data import answers
from kpod_jax.teacher.questions import Question
from kpod_jax.teacher.requests import make_requests, read_examples
from kpod_jax.utils.errors import UserError

QUESTIONS = [Question("a", "What is {answer}?", "1"), Question("b", "How {much}?", "2")]


def requests(**changes):
    teacher = defaults.get_config().teacher
    teacher.update({"model": "m"} | changes)
    return make_requests(QUESTIONS, teacher)


def test_braces_of_a_question_are_left_alone():
    text = requests(instruction="")[1].body["messages"][0]["content"]
    assert text == "Q: How {much}? A: Let's think step by step."


def test_samples_come_round_by_round():
    made = requests(samples=2, temperature=1.0)
    assert [(r.id, r.sample) for r in made] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert len({r.key for r in made}) == 4


def test_settings_that_an_endpoint_does_not_know_can_be_left_out():
    body = requests(temperature=-1.0, top_p=0.0, max_tokens_name="max_completion_tokens")[0].body
    assert set(body) == {"model", "messages", "max_completion_tokens"}


def test_our_examples_are_right_and_end_as_the_instruction_says():
    body = requests(style="few_shot")[0].body
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["user", "assistant"] * 3 + ["user"]
    for said in body["messages"][1::2]:
        rationale, _, answer = said["content"].rpartition(" Therefore, the answer is ")
        # The last calculation of the rationale is the answer.
        assert answers.answers_equal(rationale.rpartition("=")[2], answer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no examples"),
        ('{"question": "?", "answer": "1"}', ":1 has no 'rationale'"),
        ("\n{]", ":2 is not valid JSON"),
    ],
)
def test_examples_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "examples.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_examples(path)


def test_gsm8k_ids_are_lines():
    assert Question("gsm8k-train-12", "", "").row_id == 12
    assert Question("train-12", "", "").row_id == "train-12"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"style": "many_shot"}, "zero_shot, few_shot"),
        ({"prompt": "Q:"}, "exactly once"),
        ({"samples": 2}, "temperature above 0"),
        ({"base_url": "localhost:8000"}, "http://localhost:8000/v1"),
        ({"batch": "read"}, "batch_results"),
        ({"concurrency": 0}, "1 to 1000"),
        ({"top_p": 1.5}, "0 to 1"),
        ({"retries": -1}, "0 to 1000"),
    ],
)
def test_settings_are_checked(changes, message):
    config = defaults.get_config()
    config.teacher.update(changes)
    with pytest.raises(UserError, match=message):
        checks.check(config)


@pytest.mark.parametrize("url", ["http://me:pa55@host/v1", "https://host/v1?api-key=pa55"])
def test_secrets_in_an_address_are_refused_and_not_shown(url):
    config = defaults.get_config()
    config.teacher.base_url = url
    with pytest.raises(UserError, match="OPENAI_API_KEY") as error:
        checks.check(config)
    assert "pa55" not in str(error.value)
