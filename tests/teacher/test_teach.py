"""From questions to rationales.jsonl, at once, again, and after a kill."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from kpod_jax.config import defaults
from kpod_jax.data import sources
from kpod_jax.teacher import teach
from kpod_jax.utils import config_dict
from kpod_jax.utils.errors import UserError
from tests.teacher import endpoint as endpoints
from tests.teacher.conftest import KEY, add, asked, number_of, rows, summary

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_rationales_of_right_answers_are_kept(config, endpoint, tmp_path):
    def reply(question, number):
        return endpoints.completion("Therefore, 9.") if "3 + 1" in question else add(question)

    endpoint.reply = reply
    config.teacher.input_price, config.teacher.output_price = 100.0, 1000.0
    line = teach(config, tmp_path)
    assert rows(tmp_path, "rationales.jsonl")[0] == {
        "id": "train-0",
        "sample": 0,
        "question": "How much is 0 + 1?",
        "rationale": "0 + 1 = 1.",
        "teacher": "m",
        "extracted": "1",
        "answer": "1",
        "correct": True,
    }
    assert [row["id"] for row in rows(tmp_path, "rationales.jsonl")] == [
        f"train-{n}" for n in (0, 1, 2, 4, 5)
    ]
    (bad,) = rows(tmp_path, "rejected.jsonl")
    assert bad["id"] == "train-3" and bad["text"] == "Therefore, 9."
    assert bad["reason"] == "its answer is 9, the data set's is 4"
    told = summary(tmp_path)
    assert (told["asked"], told["answered"], told["kept"]) == (6, 6, 5)
    assert told["kept_share"] == pytest.approx(5 / 6)
    assert (told["prompt_tokens"], told["completion_tokens"]) == (60, 30)
    assert told["cost"] == pytest.approx(60 * 100e-6 + 30 * 1000e-6)
    assert told["rejected"] == {"wrong answer": 1}
    assert "6 of 6 answered, 5 kept (83.3 %), 60 + 30 tokens, $0.0360" in line


def test_the_request_is_the_papers_prompt_with_our_settings(config, endpoint, tmp_path):
    config.data.train_examples = 1
    teach(config, tmp_path)
    (body,) = endpoint.bodies
    (message,) = body.pop("messages")
    assert message["role"] == "user"
    assert message["content"].endswith("\n\nQ: How much is 0 + 1? A: Let's think step by step.")
    assert "Therefore, the answer is" in message["content"]
    assert body == {"model": "m", "temperature": 0.0, "top_p": 1.0, "max_tokens": 512}
    assert endpoint.keys == [f"Bearer {KEY}"]


def test_all_texts_are_kept_if_asked(config, endpoint, tmp_path):
    endpoint.reply = lambda question, number: endpoints.completion(
        "So. Therefore, the answer is 0."
    )
    config.teacher.keep = "all"
    teach(config, tmp_path)
    kept = rows(tmp_path, "rationales.jsonl")
    # The record's own answer, with which the student is trained, stays.
    assert [(row["extracted"], row["answer"], row["correct"]) for row in kept[:2]] == [
        ("0", "1", False),
        ("0", "2", False),
    ]
    assert len(kept) == 6 and summary(tmp_path)["correct"] == 0


def test_samples_are_rows_of_their_own_and_more_can_be_asked_later(config, endpoint, tmp_path):
    def reply(question, number):
        made = add(question)
        made["choices"][0]["message"]["content"] = f"{number}: {number_of(question)}. " + (
            f"The answer is {number_of(question) + 1}."
        )
        return made

    endpoint.reply = reply
    config.teacher.temperature, config.teacher.samples = 0.7, 2
    teach(config, tmp_path)
    config.teacher.samples = 3
    teach(config, tmp_path)
    assert asked(endpoint) == dict.fromkeys(range(6), 3)
    keys = [(row["id"], row["sample"]) for row in rows(tmp_path, "rationales.jsonl")]
    assert keys == [(f"train-{n}", sample) for n in range(6) for sample in range(3)]


def test_what_is_answered_is_not_asked_again(config, endpoint, tmp_path):
    teach(config, tmp_path)
    before = (tmp_path / "teacher" / "rationales.jsonl").read_bytes()
    teach(config, tmp_path)
    assert len(endpoint.bodies) == 6
    assert (tmp_path / "teacher" / "rationales.jsonl").read_bytes() == before


def test_a_cut_line_is_ignored_and_asked_again(config, endpoint, tmp_path):
    teach(config, tmp_path)
    answers = tmp_path / "teacher" / "answers.jsonl"
    *_, last = lines = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join(lines)[:-20])
    teach(config, tmp_path)
    again = json.loads(last)["id"]
    assert len(endpoint.bodies) == 7
    assert number_of(endpoint.bodies[-1]["messages"][-1]["content"]) == int(again[-1])
    assert len(rows(tmp_path, "rationales.jsonl")) == 6
    teach(config, tmp_path)
    assert len(endpoint.bodies) == 7


def test_a_changed_question_does_not_get_the_old_answer(config, endpoint, sums, tmp_path):
    teach(config, tmp_path)
    text = (sums / "train.jsonl").read_text().replace("2 + 1", "7 + 1").replace('"3"', '"8"')
    (sums / "train.jsonl").write_text(text)
    teach(config, tmp_path)
    assert asked(endpoint)[7] == 1 and len(endpoint.bodies) == 7
    assert rows(tmp_path, "rationales.jsonl")[2]["rationale"] == "7 + 1 = 8."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", "another"),
        ("prompt", "{question}"),
        ("instruction", ""),
        ("temperature", 0.5),
        ("style", "few_shot"),
        ("max_tokens", 9),
        ("extra_body", '{"seed": 1}'),
    ],
)
def test_answers_of_another_teacher_are_not_mixed(config, endpoint, tmp_path, name, value):
    teach(config, tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / "teacher").iterdir() if p.is_file()}
    config.teacher[name] = value
    with pytest.raises(UserError, match=rf"teacher\.{name} .*Nothing was changed") as error:
        teach(config, tmp_path)
    assert "another --workdir" in str(error.value)
    assert {p: p.read_bytes() for p in (tmp_path / "teacher").iterdir() if p.is_file()} == before
    assert len(endpoint.bodies) == 6


def test_what_does_not_change_answers_can_be_changed(config, endpoint, tmp_path):
    teach(config, tmp_path)
    config.teacher.concurrency, config.teacher.keep, config.teacher.timeout = 1, "all", 9.0
    teach(config, tmp_path)
    assert len(endpoint.bodies) == 6


def test_edited_examples_make_another_teacher(config, endpoint, tmp_path):
    examples = tmp_path / "mine.jsonl"
    examples.write_text('{"question": "1 + 1?", "rationale": "It is 2.", "answer": "2"}\n')
    config.teacher.style, config.teacher.examples = "few_shot", str(examples)
    teach(config, tmp_path)
    first, said, last = endpoint.bodies[0]["messages"]
    assert first["content"].endswith("Q: 1 + 1? A: Let's think step by step.")
    assert said == {"role": "assistant", "content": "It is 2. Therefore, the answer is 2."}
    assert last["content"].startswith("Q: How much is")  # The instruction was given already.
    examples.write_text('{"question": "1 + 2?", "rationale": "It is 3.", "answer": "3"}\n')
    with pytest.raises(UserError, match=r"teacher\.examples"):
        teach(config, tmp_path)


def test_a_second_process_is_turned_away(config, endpoint, tmp_path):
    inside = []

    def reply(question, number):
        if not inside:
            inside.append(True)
            with pytest.raises(UserError, match="another process"):
                teach(config, tmp_path)
            inside.append(True)
        return add(question)

    endpoint.reply = reply
    config.teacher.concurrency = 1
    teach(config, tmp_path)
    assert len(inside) == 2 and len(endpoint.bodies) == 6


def test_a_name_for_the_teacher_is_needed(config, tmp_path):
    config.teacher.model = ""
    with pytest.raises(UserError, match=r"teacher\.model"):
        teach(config, tmp_path)


def test_a_whole_file_is_asked_for_its_training_part(config, endpoint, sums, tmp_path):
    lines = [
        json.dumps({"question": f"How much is {n} + 1?", "answer": str(n + 1), "rationale": "r"})
        for n in range(60)
    ]
    whole = sums / "whole.jsonl"
    whole.write_text("\n".join(lines))
    config.data.path = str(whole)
    teach(config, tmp_path)
    records, _ = sources.load_records("jsonl", "train", path=str(whole))
    assert [row["id"] for row in rows(tmp_path, "rationales.jsonl")] == [r.id for r in records]
    assert 30 < len(records) < 60


def test_gsm8k_reads_what_was_written(config, endpoint, tmp_path):
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    for name in ("train", "test"):
        lines = [
            json.dumps({"question": f"How much is {n} + 1?", "answer": f"It is so.\n#### {n + 1}"})
            for n in range(4 if name == "train" else 20)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    config.data.name, config.data.path = "gsm8k", str(folder)
    config.data.cache_dir = str(tmp_path / "cache")
    teach(config, tmp_path)
    file = tmp_path / "teacher" / "rationales.jsonl"
    assert [row["id"] for row in rows(tmp_path, "rationales.jsonl")] == [0, 1, 2, 3]
    records, rejected = sources.load_records(
        "gsm8k",
        "train",
        path=str(folder),
        cache_dir=str(tmp_path / "cache"),
        rationales=str(file),
    )
    assert [r.rationale for r in records] == [f"{n} + 1 = {n + 1}." for n in range(4)]
    assert not rejected


def command(config, workdir: pathlib.Path) -> list[str]:
    """The command line for a configuration of these tests."""
    default = config_dict.flatten(defaults.get_config())
    flags = [
        f"--config.{key}={value}"
        for key, value in config_dict.flatten(config).items()
        if value != default[key]
    ]
    module = [sys.executable, "-m", "kpod_jax.main", "--config=configs/t5_base.py"]
    return [*module, f"--workdir={workdir}", "--mode=teach", *flags]


def wait_for(condition) -> None:
    """Until it holds; a test that would wait forever fails."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.01)


# A shell that runs these tests in the background has its children ignore SIGINT.
LISTENING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_run_again_asks_nothing_twice(config, endpoint, tmp_path, how):
    hold = threading.Event()

    def reply(question, number):
        if number >= 3:
            hold.wait(120)  # Three are answered, and the others under way or not begun.
        return add(question)

    endpoint.reply = reply
    answers = tmp_path / "teacher" / "answers.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENING, *command(config, tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    wait_for(lambda: len(endpoint.bodies) >= 5)
    wait_for(lambda: answers.read_bytes().count(b"\n") == 3)
    process.send_signal(how)
    out, error = process.communicate(timeout=120)
    hold.set()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert b"Interrupted" in error and b"Traceback" not in error
        assert len(rows(tmp_path, "rationales.jsonl")) == 3
    endpoint.reply = add
    answered = {int(row["id"][-1]) for row in rows(tmp_path, "answers.jsonl")}
    endpoint.bodies.clear()
    said = teach(config, tmp_path)
    assert asked(endpoint) == dict.fromkeys(set(range(6)) - answered, 1) and len(answered) == 3
    assert "6 of 6 answered, 6 kept" in said
    assert len(rows(tmp_path, "rationales.jsonl")) == 6
    assert KEY.encode() not in said.encode() + out + error
    assert os.environ["OPENAI_API_KEY"] == KEY  # It was there to be leaked.


def logprobs(*entries):
    """As the API has them: each token, its own log probability, and those of others."""
    return {
        "content": [
            {
                "token": token,
                "logprob": logprob,
                "top_logprobs": [{"token": t, "logprob": p} for t, p in top.items()],
            }
            for token, logprob, top in entries
        ]
    }


def test_the_teachers_distributions_are_stored_beside_the_rationales(config, endpoint, tmp_path):
    config.data.train_examples = 3
    config.teacher.logprobs = 2

    def reply(question, number):
        body = add(question)
        text = body["choices"][0]["message"]["content"]
        spelled = [("\n" + text[:3], -0.5, {text[:3]: -1.0, "x": -2.0}), (text[3:], -0.1, {})]
        broken = [("\ufffd", -0.5, {})], [(None, -0.5, {})]
        given = [spelled, *broken][number_of(question)]
        body["choices"][0]["logprobs"] = logprobs(*given)
        return body

    endpoint.reply = reply
    config.teacher.concurrency = 1
    teach(config, tmp_path)
    assert endpoint.bodies[0]["logprobs"] is True and endpoint.bodies[0]["top_logprobs"] == 2
    assert len(rows(tmp_path, "rationales.jsonl")) == 3
    # Those that do not spell the rationale, and what is no token, are left out.
    (found,) = rows(tmp_path, "distributions.jsonl")
    text = "0 + 1 = 1."
    assert (found["question"], found["rationale"]) == ("How much is 0 + 1?", text)
    assert "".join(found["tokens"]).strip().startswith(text)
    first = {text[:3]: -1.0, "x": -2.0, "\n" + text[:3]: -0.5}
    assert found["top_logprobs"][0] == first
    config.teacher.logprobs = 0
    with pytest.raises(UserError, match=r"teacher\.logprobs was 2"):
        teach(config, tmp_path)


def test_distributions_that_spell_the_key_are_not_stored(config, endpoint, tmp_path):
    config.data.train_examples = 1
    config.teacher.logprobs = 1

    def reply(question, number):
        body = add(question)
        body["choices"][0]["logprobs"] = logprobs((KEY[:5], -0.5, {}), (KEY[5:], -0.5, {}))
        return body

    endpoint.reply = reply
    teach(config, tmp_path)
    assert rows(tmp_path, "distributions.jsonl") == []
    for path in (tmp_path / "teacher").rglob("*.json*"):
        assert KEY[5:] not in path.read_text()


def test_a_bucket_takes_no_answers(config, endpoint):
    with pytest.raises(UserError, match="a directory on this machine"):
        teach(config, "gs://bucket/run")
    assert not asked(endpoint)
