"""Files for the batch API, there and back."""

import json

import pytest

from kpod_jax.teacher import teach
from kpod_jax.teacher.batch import read_batch, write_batch
from kpod_jax.teacher.requests import Request
from kpod_jax.utils.errors import UserError
from tests.teacher.conftest import KEY, add, rows, summary


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def result(request, body=None, code=200, error=None):
    body = add(request["body"]["messages"][-1]["content"]) if body is None else body
    response = {"status_code": code, "request_id": "r", "body": body}
    return {"id": "b", "custom_id": request["custom_id"], "response": response, "error": error}


@pytest.fixture
def written(config, tmp_path):
    """The requests of the six questions."""
    config.teacher.batch = "write"
    message = teach(config, tmp_path)
    path = tmp_path / "teacher" / "batch" / "requests-1.jsonl"
    assert str(path) in message and KEY not in path.read_text()
    return read(path)


def test_requests_are_those_of_the_api(written, endpoint):
    assert not endpoint.bodies
    assert len({request["custom_id"] for request in written}) == len(written) == 6
    first = written[0]
    assert set(first) == {"custom_id", "method", "url", "body"}
    assert (first["method"], first["url"]) == ("POST", "/v1/chat/completions")
    assert first["body"]["model"] == "m" and "0 + 1" in first["body"]["messages"][0]["content"]


def test_results_in_any_order_become_rationales(config, written, endpoint, tmp_path):
    results = tmp_path / "results.jsonl"
    lines = [result(request) for request in reversed(written[1:])]
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config.teacher.batch, config.teacher.batch_results = "read", str(results)
    teach(config, tmp_path)
    kept = rows(tmp_path, "rationales.jsonl")
    assert [row["id"] for row in kept] == [f"train-{n}" for n in range(1, 6)]
    assert kept[0]["rationale"] == "1 + 1 = 2." and summary(tmp_path)["completion_tokens"] == 25
    # The same file again changes nothing, and the rest can be asked for either way.
    assert "5 results skipped" in teach(config, tmp_path)
    assert summary(tmp_path)["completion_tokens"] == 25
    config.teacher.batch = "write"
    assert "1 requests" in teach(config, tmp_path)
    config.teacher.batch = "none"
    teach(config, tmp_path)
    assert len(endpoint.bodies) == 1 and summary(tmp_path)["kept"] == 6
    config.teacher.batch = "write"
    assert "nothing to write" in teach(config, tmp_path)


def test_failed_and_foreign_results(config, written, sums, tmp_path):
    text = (sums / "train.jsonl").read_text().replace("5 + 1", "9 + 1")
    (sums / "train.jsonl").write_text(text)
    lines = [
        json.dumps(result(written[0])),
        "{half a li",
        json.dumps(result(written[1], {"error": {"message": "too\x1b long"}}, 400)),
        json.dumps(
            result(written[2]) | {"response": None, "error": {"code": "e", "message": "expired"}}
        ),
        json.dumps(result(written[3], {"choices": []})),
        json.dumps(result(written[4]) | {"custom_id": "train-99#0#0"}),
        json.dumps(result(written[5])),  # Of a question that is another one by now.
    ]
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    config.teacher.batch = "read"
    config.teacher.batch_results = str(tmp_path / "results.jsonl")
    assert "3 results skipped" in teach(config, tmp_path)
    assert [row["id"] for row in rows(tmp_path, "rationales.jsonl")] == ["train-0"]
    reasons = {row["id"]: row["reason"] for row in rows(tmp_path, "rejected.jsonl")}
    assert reasons == {
        "train-1": "the batch API answered: too long",
        "train-2": "the batch API answered: expired",
        "train-3": "the response has no choices",
        "train-4": "not asked yet",
        "train-5": "not asked yet",
    }


def test_a_result_that_is_nested_too_deeply(config, written, sums, tmp_path):
    body = "[" * 600 + "]" * 600
    name = written[0]["custom_id"]
    results = tmp_path / "results.jsonl"
    results.write_text(f'{{"custom_id": "{name}", "response": {{"body": {body}}}}}\n')
    config.teacher.batch, config.teacher.batch_results = "read", str(results)
    with pytest.raises(UserError, match="Fix the problem"):
        teach(config, tmp_path)
    (row,) = rows(tmp_path, "answers.jsonl")
    assert row["error"] == "the batch API answered: JSON nested too deeply to parse"


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"question": "?"}\n')
    with pytest.raises(UserError, match="no batch results"):
        read_batch(tmp_path / "x.jsonl", [], lambda row: None)
    with pytest.raises(UserError, match="Cannot read"):
        read_batch(tmp_path / "none.jsonl", [], lambda row: None)


def test_files_are_as_large_as_the_api_takes(tmp_path):
    requests = [Request(str(n), 0, "d", {"messages": "é" * 10}) for n in range(7)]
    paths = write_batch(tmp_path, requests, max_requests=3)
    assert [len(read(path)) for path in paths] == [3, 3, 1]
    size = paths[-1].stat().st_size
    paths = write_batch(tmp_path, requests, max_bytes=2 * size)
    assert [len(read(path)) for path in paths] == [2, 2, 2, 1]
    assert all(path.stat().st_size <= 2 * size for path in paths)
    # What an earlier batch had more would be uploaded by mistake.
    assert write_batch(tmp_path, requests[:1]) == [tmp_path / "requests-1.jsonl"]
    assert list(tmp_path.iterdir()) == [tmp_path / "requests-1.jsonl"]
