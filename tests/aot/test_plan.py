import subprocess
import sys

import pytest

from kpod_jax.aot import plan
from kpod_jax.config import loading
from kpod_jax.utils.errors import UserError
from tests.conftest import TINY_STUDENT


@pytest.fixture
def config(here):
    config = loading.load_config("configs/quickstart.py")
    config.update_from_flattened_dict(TINY_STUDENT)
    config.data.train_examples, config.data.test_examples = 64, 10
    config.weighting.steps, config.distill.epochs = 7, 3
    return config


def stages(text):
    table = text.partition("GB\n")[2].partition("Together")[0]
    rows = [line.split() for line in table.splitlines()]
    return {" ".join(row[:-5]): row[-5:] for row in rows}


def test_it_counts_steps_tokens_and_hours(config):
    text = plan.plan(config, tflops=1.0)
    assert "64 train, 500 validation, 10 test" in text
    rows = stages(text)
    assert list(rows) == ["weigh: learn", "score", "distill", "eval"]
    assert rows["weigh: learn"][0] == "7"
    assert rows["distill"][0] == str(3 * int(rows["score"][0]))
    total = float(text.partition("Together ")[2].split()[0])
    hours = float(text.partition("PFLOPs; ")[2].split()[0])
    assert total == pytest.approx(sum(float(row[2]) for row in rows.values()), rel=0.02)
    assert hours == pytest.approx(total * 1e3 / 3600, abs=0.01)
    assert "set --tflops" in plan.plan(config)  # A CPU's peak is not known.


def test_double_the_epochs_are_double_the_flops(config):
    once = stages(plan.plan(config))["distill"]
    config.distill.epochs = 6
    twice = stages(plan.plan(config))["distill"]
    assert float(twice[2]) == pytest.approx(2 * float(once[2]), rel=0.01)
    assert int(twice[0]) == 2 * int(once[0])


def test_what_would_fail_fails_now(config):
    config.data.name, config.data.path = "jsonl", "/nowhere"
    with pytest.raises(UserError, match="/nowhere"):
        plan.plan(config)


def test_the_command_writes_nothing(config, tmp_path, monkeypatch):
    command = [sys.executable, "-m", "kpod_jax.main", "--mode=plan", "--tflops=1"]
    command += ["--config=configs/quickstart.py", "--config.data.train_examples=64"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "Together" in result.stdout and "distill" in result.stdout
