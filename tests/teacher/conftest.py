"""A data set of sums, and an endpoint that can add, unless a test replaces its `reply`."""

import collections
import json
import pathlib
import re

import pytest

from kpod_jax.cli import checks
from kpod_jax.config import defaults
from kpod_jax.data import jsonl
from tests.teacher import endpoint as endpoints

KEY = "sk-a-secret-of-the-test"


def add(question: str, number: int = 0) -> dict:
    """The right answer to "How much is A + B?"."""
    found = re.search(r"How much is (\d+) \+ (\d+)\?", question)
    assert found is not None, question
    a, b = int(found[1]), int(found[2])
    return endpoints.completion(f"{a} + {b} = {a + b}. Therefore, the answer is {a + b}.")


def number_of(question: str) -> int:
    """A of "How much is A + B?"."""
    found = re.search(r"(\d+) \+", question)
    assert found is not None
    return int(found[1])


def rows(workdir: pathlib.Path, name: str) -> list[dict]:
    return [row for _, row, _ in jsonl.read_rows(workdir / "teacher" / name) if row is not None]


def summary(workdir: pathlib.Path) -> dict:
    return json.loads((workdir / "teacher" / "summary.json").read_text())


def asked(endpoint) -> collections.Counter:
    """How often each question reached the endpoint."""
    return collections.Counter(
        number_of(body["messages"][-1]["content"]) for body in endpoint.bodies
    )


@pytest.fixture
def key(monkeypatch):
    """The key in the environment, and nothing else that the client would read."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
    return KEY


@pytest.fixture
def endpoint(key):
    yield from endpoints.serving(add)


@pytest.fixture
def sums(tmp_path):
    """Six questions, none with a rationale."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"question": f"How much is {n} + 1?", "answer": str(n + 1)} for n in range(6)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text)
    for name in ("validation", "test"):  # So that nothing is held out of train.
        (folder / f"{name}.jsonl").touch()
    return folder


@pytest.fixture
def config(sums, endpoint):
    config = defaults.get_config()
    config.data.name, config.data.path = "jsonl", str(sums)
    config.teacher.model, config.teacher.base_url = "m", endpoint.url
    config.teacher.concurrency = 2
    checks.check(config)
    return config
