"""Paths as people give them, and full disks: they work, or are one line."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from absl.testing import flagsaver

from kpod_jax import main
from kpod_jax.config.loading import load_config
from kpod_jax.data import custom, jsonl
from kpod_jax.evaluation import significance
from kpod_jax.schedule import clusters
from kpod_jax.teacher import requests
from kpod_jax.utils import files, plugins
from kpod_jax.utils.errors import UserError
from tests.conftest import ROOT

QUICKSTART = "--config=configs/quickstart.py"
BUCKETS = "gs://, s3://, az://, hf://"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def in_this_process(monkeypatch) -> None:
    """Leaves the settings, signals and devices of the tests as they are."""
    monkeypatch.setattr(main, "_prepare", lambda: None)
    monkeypatch.setattr(main.processes, "join", lambda *flags: None)
    monkeypatch.setattr(main.processes, "raise_on_sigterm", lambda: None)
    monkeypatch.setattr(main.signals, "raise_on", lambda *numbers: None)


def said(capsys, *arguments: str) -> str:
    """What a wrong command says: one line, with exit code 2, before anything is done."""
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
        main.parse_flags(["main", *arguments])
        main.main(["main"])
    printed = capsys.readouterr()
    assert stop.value.code == 2 and "→" not in printed.out  # No stage has ended.
    (line,) = printed.err.splitlines()
    return line


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("~", ""),
        ("~/a b/ü", "a b/ü"),
        ("~/~", "~"),
        ("./~/x", None),
        ("~no_such_user/x", None),
        ("~$train.csv", None),  # Excel's lock file.
        ("a~/x", None),
        ("~root/x", "/root/x"),
    ],
)
def test_the_home_directory(home, path, expected):
    expected = str(files.pathlib.Path(path)) if expected is None else str(home / expected)
    for convert in (files.as_path, files.expand, files.local):
        assert str(convert(path)) == expected


def test_every_file_may_be_in_the_home_directory(home):
    (home / "q.jsonl").write_text('{"question": "1?", "rationale": "1.", "answer": "1"}\n')
    assert [row for _, row, _ in jsonl.read_rows("~/q.jsonl")] and requests.read_examples(
        "~/q.jsonl"
    )
    assert custom.files_of("jsonl", "~/q.jsonl") == [home / "q.jsonl"]
    np.save(home / "v.npy", np.ones((2, 3), np.float32))
    assert clusters.read_question_vectors("~/v.npy", 2).shape == (2, 3)
    (home / "glove.txt").write_text("one 1 2\ntwo 3 4\n")
    assert clusters.question_vectors(["one two"], "~/glove.txt").shape == (1, 2)
    files.write_npz("~/w.npz", values=np.ones(2))
    assert list(files.read_npz(home / "w.npz")) == ["values"] and files.digest("~/w.npz")
    shutil.copy(ROOT / "kpod_jax/configs/quickstart.py", home / "mine.py")
    assert load_config("~/mine.py:scotd").method == "scotd"
    (home / "sweep.py").write_text("def get_runs():\n    return {}\n")
    assert plugins.load_file("~/sweep.py", "--sweep", "get_runs").get_runs() == {}
    (home / "run+1/predictions").mkdir(parents=True)
    row = {"id": "1", "question": "1?", "gold": "1", "correct": True}
    (home / "run+1/predictions/test.jsonl").write_text(json.dumps(row) + "\n")
    (method,) = significance._read_methods(["~/run+1"], "test")
    assert method.name == "run+1" and method.rows[0]["1"]["correct"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("file:///tmp/run", "(did you mean '/tmp/run'?)"),
        ("file://run", "(did you mean 'run'?)"),
        ("memory://run", BUCKETS),
        ("foo://bucket/run", BUCKETS),
        ("gcs://bucket/run", BUCKETS),
        ("http://host/run", BUCKETS),
        ("https://host/run", BUCKETS),
        ("hdfs://host/run", BUCKETS),
        ("C://run", BUCKETS),
        ("://run", BUCKETS),
        ("s3://bucket/run", "pip install s3fs."),
        ("az://bucket/run", "pip install adlfs."),
        (os.fsdecode(b"r\xfcn"), "not UTF-8"),
        (os.fsdecode(b"/tmp/\xff\xfe/run"), "not UTF-8"),
        ("a" * 300, "File name too long"),
        ("/dev/null/run", "Not a directory"),
        ("/proc/run", "No such file or directory"),
    ],
)
def test_work_directories_that_cannot_be(capsys, monkeypatch, path, expected):
    monkeypatch.chdir(ROOT)
    in_this_process(monkeypatch)
    for mode in ("rationales", "eval"):
        line = said(capsys, QUICKSTART, f"--workdir={path}", f"--mode={mode}")
        assert expected in line or (mode == "eval" and "does not exist" in line)
        line.encode()


@pytest.mark.parametrize("flag", ["config", "runs", "output", "config.data.path"])
def test_arguments_that_are_not_utf8(capsys, flag):
    line = said(capsys, f"--{flag}=" + os.fsdecode(b"\xff.py"))
    assert line.endswith(r"\udcff.py is not UTF-8 text; rename the file, or convert the text.")


@pytest.mark.parametrize("form", ["config", "data"])
def test_urls_of_other_files(capsys, monkeypatch, tmp_path, form):
    monkeypatch.chdir(ROOT)
    in_this_process(monkeypatch)
    url = f"file://{tmp_path}/x.jsonl"
    own = ["--config.data.name=jsonl", "--config.weighting.fit=same"]
    flags = {
        "config": [f"--config={url}"],
        "data": [QUICKSTART, *own, f"--config.data.path={url}"],
    }[form]
    assert url in said(capsys, *flags, f"--workdir={tmp_path}/run", "--mode=rationales")


def test_a_working_directory_that_was_deleted(capsys, monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "working directory was deleted" in said(capsys, "--config=x.py")


@pytest.fixture
def small_disk(tmp_path):
    """A directory with room for 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


LARGE = np.random.default_rng(0).normal(size=50_000)  # 400 kB, which hardly compress.


@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_npz(path, values=LARGE),
        lambda path: files.write_text(path, "a" * 400_000),
        lambda path: files.write_json(path, LARGE.tolist()),
        lambda path: files.write_jsonl(path, [{"a": LARGE.tolist()}]),
        lambda path: _save(path, LARGE),
    ],
)
def test_a_full_disk_is_named(small_disk, write):
    with pytest.raises(UserError) as raised:
        write(small_disk / "file")
    assert "No space left on device. Existing files were not changed." in str(raised.value)
    assert list(small_disk.iterdir()) == []


def _save(path, array):
    """As tokenized sets are saved."""
    with files.atomic_write(path) as file:
        np.save(file, array)


def test_numpys_short_writes_are_a_full_disk(tmp_path):
    for text, shown in (("50000 requested and 8192 written", "No space left"), ("odd", "odd")):
        with pytest.raises(UserError, match=shown), files.atomic_write(tmp_path / "file"):
            raise OSError(text)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["64k", "700k", "1500k"])
def test_a_run_on_a_full_disk_is_one_line(tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    keys = {
        "data.train_examples": 64,
        "data.validation_examples": 8,
        "data.test_examples": 8,
        "distill.epochs": 2,
        "distill.checkpoint_every": 1,
        "student.model": "tests/tiny_t5.json",
        "student.init": "random",
        "student.tokenizer": "kpod_jax/assets/tiny_t5",
    }
    command = [sys.executable, "-m", "kpod_jax.main", "--config=configs/quickstart.py:scotd"]
    command += [
        f"--workdir={disk}/run",
        *(f"--config.{key}={value}" for key, value in keys.items()),
    ]
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    lines = ended.stderr.splitlines()
    (line,) = (line for line in lines if not line.endswith("compiling (first step) …"))
    assert ended.returncode == 2 and line.startswith("error: Cannot write ")
    assert "No space left on device" in line
