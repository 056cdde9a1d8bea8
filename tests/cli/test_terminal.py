"""What a user reads in the terminal."""

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest

from kpod_jax import main, pipeline
from kpod_jax.cli import arguments, reference, terminal, usage
from kpod_jax.config import defaults, loading
from kpod_jax.models.student import load_student
from kpod_jax.parallel import sharding
from kpod_jax.utils import config_dict, files
from kpod_jax.utils.errors import UserError
from tests.conftest import ROOT, TINY_STUDENT

KEYS = {
    **TINY_STUDENT,
    "data.train_examples": 24,
    "data.validation_examples": 6,
    "data.test_examples": 8,
    "distill.epochs": 1,
    "eval.max_new_tokens": 8,
}


@pytest.fixture
def config(here):
    config = loading.load_config("configs/quickstart.py:scotd")
    config.update_from_flattened_dict(KEYS)
    return config


def test_the_banner_says_what_runs_where(config, tmp_path, monkeypatch):
    student, mesh = load_student(config.student), sharding.make_mesh()
    first, second = terminal.banner(config, student, mesh, tmp_path).split("\n")
    count = sum(leaf.size for leaf in np_leaves(student, mesh))
    assert f"SCoTD, student tests/tiny_t5.json ({count / 1000:.3g} k parameters)" in first
    assert first.endswith("data arithmetic")
    assert second == f"  1 × cpu, float32; writes to {tmp_path}"
    gpu = tmp_path / "nvidia0"
    gpu.touch()
    monkeypatch.setattr(terminal, "_GPU", gpu)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert "hint: JAX does not use" in terminal.banner(config, student, mesh, tmp_path)


def np_leaves(student, mesh):
    return [np.empty(leaf.shape) for leaf in main.jax.tree.leaves(student.abstract(mesh))]


def test_counts_are_short():
    assert list(map(terminal._short, (7, 1500, 247_577_856, 6_738_415_616))) == [
        "7", "1.5 k", "248 M", "6.74 B",
    ]  # fmt: skip


def test_a_run_ends_with_its_results_and_the_next_commands(config, tmp_path):
    part = {"accuracy": 0.125, "correct": 1, "total": 8, "interval": [0.02, 0.47]}
    value = {"method": "scotd", "split": "test", **part, "ood": {"svamp": part}}
    files.write_json(tmp_path / "results.json", value)
    lines = terminal.ending(config, tmp_path).splitlines()
    assert "SCoTD   arithmetic test  12.5%     2.0% to 47.0%  1 of 8" in lines
    assert "SCoTD   svamp test       12.5%     2.0% to 47.0%  1 of 8" in lines
    assert (
        f"  python -m kpod_jax.main --config={tmp_path} --workdir={tmp_path} --mode=export" in lines
    )
    assert lines[-1] == f"  python -m kpod_jax.main --mode=compare --runs={tmp_path},OTHER_RUN"


def test_help_shows_the_keys_that_matter():
    values = config_dict.flatten(defaults.get_config())
    text = usage.text([])
    assert len(usage.KEYS) == 10
    assert all(f"  --config.{key}={values[key]!r}\n" in text for key in usage.KEYS)


def test_all_keys_are_listed_or_those_that_match():
    values = config_dict.flatten(defaults.get_config())
    listed = re.findall(r"^(\S+?)=", reference.keys(), re.MULTILINE)
    assert listed == list(values)
    assert re.findall(r"^(\S+?)=", reference.keys("eval.*"), re.MULTILINE) == [
        key for key in values if key.startswith("eval.")
    ]
    assert "weighting.lora.rank=0\n    Rank of the answerer's adapters." in reference.keys("rank")
    with pytest.raises(UserError, match="No configuration key matches"):
        reference.keys("nothing_like_it")


def test_a_pattern_follows_its_mode():
    assert arguments.with_pattern(["--mode=keys", "lora"]) == ["--mode=keys", "--keys=lora"]
    assert arguments.with_pattern(["--mode=all", "lora"]) == ["--mode=all", "lora"]
    assert arguments.with_pattern(["--mode=keys"]) == ["--mode=keys"]
    assert arguments.with_pattern([]) == []


def command(workdir):
    changes = [f"--config.{key}={value}" for key, value in KEYS.items()]
    program = [sys.executable, "-m", "kpod_jax.main", "--config=configs/quickstart.py:scotd"]
    return [*program, f"--workdir={workdir}", *changes]


def run_in_terminal(arguments):
    """Runs a command with a pseudo-terminal, and returns its output and exit status."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=follower, stderr=follower)
    os.close(follower)
    output = b""
    while True:
        try:
            output += (part := os.read(leader, 4096))
        except OSError:  # Linux's end of a terminal.
            break
        if not part:
            break
    os.close(leader)
    return output.decode(), process.wait()


@pytest.mark.slow
def test_a_run_in_a_terminal_and_in_a_log(tmp_path):
    shown, status = run_in_terminal(command(tmp_path / "terminal"))
    assert status == 0, shown
    assert "compiling (first step)" in shown and "Distilling: 100%" in shown and " left" in shown
    done = subprocess.run(command(tmp_path / "log"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stdout + done.stderr and "\x1b" not in done.stdout + done.stderr
    for text in (shown.replace("\r\n", "\n"), done.stdout):
        assert re.search(r"^KPOD-JAX \S+: SCoTD, student tests/tiny_t5.json", text, re.MULTILINE)
        for stage in ("rationales", "distill", "eval", "report"):
            assert f"{stage}: {pipeline.STAGES[stage].about} …\n" in text
            assert re.search(rf"^{stage}: .* → .* \([\d.]+ s\)$", text, re.MULTILINE)
        assert "and 3 more (" in text  # Of the six files of the records.
        assert re.search(r"^SCoTD +arithmetic test +[\d.]+%", text, re.MULTILINE)
        assert "OTHER_RUN" in text
    # The next command works as it is shown.
    (export,) = re.findall(
        r"^  python -m (kpod_jax.main .* --mode=export)$", done.stdout, re.MULTILINE
    )
    subprocess.run([sys.executable, "-m", *shlex.split(export)], cwd=ROOT, check=True)
    assert (tmp_path / "log/export/model.safetensors").exists()
    # No line of a log's own form, such as W1201 or I0000.
    assert not re.search(r"^[IWE]\d{4} ", shown + done.stderr, re.MULTILINE)
