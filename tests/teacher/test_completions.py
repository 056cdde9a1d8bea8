"""What is made of a teacher's text, and of any JSON at all."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kpod_jax.teacher.completions import clean, judge, read_completion
from tests.teacher.endpoint import completion


@pytest.mark.parametrize(
    ("text", "rationale"),
    [
        ("3 + 4 = 7. Therefore, the answer is 7.", "3 + 4 = 7."),
        ("3 + 4 = 7.\n\n**Therefore, the answer is $7.**", "3 + 4 = 7."),
        ("3 + 4 = 7, so the final answer is 7. Anything else?", "3 + 4 = 7,"),
        (
            "The answer is 8? No. 3 + 4 = 7. Hence the answer is 7",
            "The answer is 8? No. 3 + 4 = 7.",
        ),
        ("3 + 4 = 7\n#### 7", "3 + 4 = 7"),
        ("3 + 4 = 7\n**Final answer:** 7", "3 + 4 = 7"),
        ("3 + 4 = \\boxed{7}", "3 + 4 = \\boxed{7}"),
        ("**3 + 4** is **7**", "**3 + 4** is **7**"),
    ],
)
def test_the_rationale_ends_before_its_answer(text, rationale):
    judged = judge(text, "stop", "7", "number")
    assert (judged.rationale, judged.extracted, judged.reason) == (rationale, "7", "")


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("3 + 4 = 8. Therefore, the answer is 8.", "stop", "its answer is 8, the data set's is 7"),
        ("I do not know.", "stop", "the text gives no answer"),
        ("Therefore, the answer is 7.", "stop", "there is no rationale before the answer"),
        # What stands last in a text that was cut off is no answer, were it the right one.
        ("First, 3 + 4 = 7", "length", "the text is not whole (finish_reason length)"),
    ],
)
def test_why_a_text_is_rejected(text, finish, reason):
    judged = judge(text, finish, "7", "number")
    assert judged.reason.startswith(reason)
    assert judged.correct == reason.startswith("there is no rationale")


def test_a_text_that_was_cut_off_in_its_answer_is_not_whole():
    # It may have been about to say 70.
    assert judge("3 + 4 = 7. The answer is 7", "length", "7", "number").reason


def test_keeping_all_keeps_wrong_answers_but_no_cut_texts():
    assert not judge("3 + 4 = 8. So the answer is 8.", "stop", "7", "number", "all").reason
    assert not judge("I do not know.", "stop", "7", "number", "all").reason
    assert judge("First, 3 +", "length", "7", "number", "all").reason


def test_choices():
    judged = judge("Money. Therefore, the answer is (B) bank.", "stop", "B", "choice")
    assert judged.correct and judged.rationale == "Money."
    assert judge("It is. So the answer is yes.", "stop", "yes", "yes_no").correct


def test_a_completion():
    assert read_completion(completion(" So 7. ")) == {
        "text": "So 7.",
        "finish": "stop",
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "model": "served",
        "error": None,
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, st.sampled_from(["all", "usage", "choices", "choice", "message", "content", "model"]))
def test_any_json_is_an_answer_or_an_error(value, where):
    body = completion("x")
    if where == "all":
        body = value
    elif where == "choice":
        body["choices"] = [value]
    elif where in ("message", "content"):
        place = body["choices"][0]
        (place if where == "message" else place["message"])[where] = value
    else:
        body[where] = value
    answer = read_completion(body)
    assert answer["error"] or answer["text"]
    json.dumps(answer, allow_nan=False).encode("utf-8")


@given(st.text())
def test_foreign_texts_are_one_printable_line(text):
    assert clean(text).isprintable() and len(clean(text, 10)) <= 11


@given(
    st.text(alphabet="the answer is:*_#\n 7", max_size=300), st.sampled_from(["number", "choice"])
)
def test_a_kept_rationale_is_a_start_of_the_text(text, kind):
    judged = judge(text, "stop", "7", kind)
    assert judged.rationale in text
    assert judged.reason or (judged.rationale and judged.correct)
