"""One run in one work directory: who holds it, and what a killed run leaves behind."""

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time

import fsspec
import pytest

from kpod_jax import pipeline
from kpod_jax.utils import files, locks
from kpod_jax.utils.errors import UserError
from tests.conftest import ROOT
from tests.test_pipeline import small

HOLD = """
import sys, time
from kpod_jax.utils import locks
locks._BEAT = 0.1
with locks.locked(sys.argv[1]) as note:
    print(note or "held", flush=True)
    if sys.argv[2] == "stay":
        time.sleep(600)
"""
NOW = 1e12  # Never long ago, whatever the clock says.
ELSEWHERE = {"host": "tpu-7", "pid": 42, "since": "2026-11-30 08:00:00+00:00", "command": "x"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in {"_BEAT": 0.1, "_GONE": 0.3, "_SETTLE": 0.1}.items():
        monkeypatch.setattr(locks, name, seconds)


@pytest.fixture(params=["disk", "disk without locks", "bucket"])
def place(request, tmp_path, monkeypatch):
    """A directory of each kind."""
    if request.param == "bucket":
        yield "memory://locks/run"
        fsspec.filesystem("memory").store.clear()
        return
    if request.param == "disk without locks":

        def refuse(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(locks.fcntl, "flock", refuse)
    yield str(tmp_path)


def put(place: str, text: str | bytes) -> None:
    with fsspec.open(f"{place}/.lock", "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())  # pyright: ignore


def content(place: str) -> dict:
    with fsspec.open(f"{place}/.lock", "rb") as file:
        return json.loads(file.read())  # pyright: ignore


def hold(path, what: str = "stay") -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(path), what]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def first_line(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_second_run_is_told_of_the_first(tmp_path):
    first = hold(tmp_path)
    assert first_line(first) == "held"
    with pytest.raises(UserError) as refused, locks.locked(tmp_path):
        pass
    said = str(refused.value)
    assert f"{tmp_path} is in use by process {first.pid} on {socket.gethostname()} since 2" in said
    assert "Wait for it, or choose another --workdir." in said and len(said.splitlines()) == 1
    first.kill()
    first.wait()
    with locks.locked(tmp_path) as note:
        assert note.startswith(f"Took over the lock on {tmp_path} from process {first.pid} on")
        assert note.endswith(", which is gone.")
    with locks.locked(tmp_path) as note:
        assert note == ""


@pytest.mark.parametrize("how", ["ends", "fails", "is interrupted"])
def test_a_run_that_ends_leaves_no_lock(place, how):
    error = {"fails": RuntimeError, "is interrupted": KeyboardInterrupt}.get(how)
    with pytest.raises(error) if error else contextlib.nullcontext(), locks.locked(place) as note:
        assert note == "" and content(place)["pid"] == os.getpid()
        if error:
            raise error
    with locks.locked(place) as note:
        assert note == ""


def test_two_in_one_process(place):
    with locks.locked(place):
        with pytest.raises(UserError, match=f"process {os.getpid()} on"), locks.locked(place):
            pass
        assert content(place)["pid"] == os.getpid()


def dead() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize("pid", ["dead", "reused"])
def test_a_killed_process_of_this_machine(place, pid):
    """Its number may belong to another process by now, which gives no sign of life."""
    killed = dead() if pid == "dead" else os.getppid()
    put(place, json.dumps({"pid": killed, "machine": locks._machine(), "alive": NOW, "token": "a"}))
    with locks.locked(place) as note:
        assert f"from process {killed} on unknown since unknown" in note


@pytest.mark.parametrize(
    "alive",
    [0, time.time() - 3600, NOW, None, "x", float("nan")],
    ids=["never", "an hour ago", "ahead", "missing", "text", "nan"],
)
def test_a_process_elsewhere_that_is_gone(place, alive, capsys):
    put(place, json.dumps(ELSEWHERE | {"machine": "tpu-7", "token": "a", "alive": alive}))
    with locks.locked(place) as note:
        assert "process 42 on tpu-7 since 2026-11-30 08:00:00+00:00 (x), which is gone." in note
    # A clock that is hours ahead of ours, or none at all, is no proof: it is watched.
    watched = not (isinstance(alive, float | int) and alive < NOW)
    assert ("for a sign of life of process 42 on" in capsys.readouterr().out) == watched


def test_a_process_elsewhere_that_lives(place, monkeypatch):
    state = {"beat": 0}

    def sleep(seconds):
        state["beat"] += 1
        put(
            place, json.dumps(ELSEWHERE | {"machine": "tpu-7", "token": "a", "alive": NOW, **state})
        )

    put(place, json.dumps(ELSEWHERE | {"machine": "tpu-7", "token": "a", "alive": NOW, "beat": 0}))
    monkeypatch.setattr(locks.time, "sleep", sleep)
    with pytest.raises(UserError, match="process 42 on tpu-7"), locks.locked(place):
        pass


@pytest.mark.parametrize(
    "text",
    [
        b"", b"\0" * 9, b"\xff\xfe", "{", '{"pid": ', "[]", "{}", "null", "3", '"x"', "[" * 9999,
        '{"pid": "x"}', '{"pid": -1}', '{"pid": 1e99}', '{"pid": 99999999999}', '{"alive": []}',
    ],
    ids=range(16),
)  # fmt: skip
def test_a_damaged_lock_is_no_obstacle(place, text):
    put(place, text)
    with locks.locked(place):
        assert content(place)["pid"] == os.getpid()


def test_text_of_others_cannot_move_the_cursor(tmp_path):
    put(str(tmp_path), json.dumps({"pid": 1, "host": "\x1b[2J\nx", "command": "y" * 9999}))
    with locks.locked(tmp_path) as note:
        assert "\x1b" not in note and "\n" not in note and len(note) < 999


def test_it_gives_signs_of_life(place):
    with locks.locked(place):
        first = content(place)
        until = time.monotonic() + 10
        while content(place)["alive"] == first["alive"]:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_run_that_lost_its_lock_ends_at_once(place, monkeypatch, capfd):
    """It slept too long, in a suspended machine, and another one took over."""
    ended, other = [], ELSEWHERE | {"machine": "tpu-7", "token": "a", "alive": NOW}

    def end(status):
        ended.append((status, content(place)))
        raise SystemExit  # Of the thread.

    monkeypatch.setattr(locks.os, "_exit", end)
    with locks.locked(place):
        put(place, json.dumps(other))
        until = time.monotonic() + 60
        while not ended and time.monotonic() < until:
            time.sleep(0.05)
    assert ended == [(2, other)]  # The file is the other's.
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {place} was taken over by process 42 on tpu-7")


def test_a_process_that_lost_its_lock_saves_nothing_more(tmp_path):
    process = hold(tmp_path)
    assert first_line(process) == "held"
    put(str(tmp_path), json.dumps(ELSEWHERE | {"machine": "tpu-7", "token": "a", "alive": NOW}))
    assert process.wait(60) == 2


def test_a_thread_that_hangs_in_the_lock_hits_no_other_file(tmp_path, monkeypatch):
    """A network file system may answer once the run has ended and its descriptor is another's."""
    hangs, answers = threading.Event(), threading.Event()
    read = locks._LocalFile.read

    def hanging_read(file):
        if threading.current_thread().name == "lock":
            hangs.set()
            answers.wait(60)
        return read(file)

    monkeypatch.setattr(locks._LocalFile, "read", hanging_read)
    with locks.locked(tmp_path):
        assert hangs.wait(60)
    paths = [tmp_path / str(number) for number in range(9)]
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(path.open("w")) for path in paths]
        answers.set()
        for thread in threading.enumerate():
            if thread.name == "lock":
                thread.join(60)
        assert len(opened) == 9
    assert not any(path.read_text() for path in paths)


def test_a_place_that_cannot_be_locked(tmp_path):
    (tmp_path / "file").touch()
    said = r"Cannot lock .*file: Not a directory\. Free"
    with pytest.raises(UserError, match=said), locks.locked(tmp_path / "file"):
        pass


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(locks.os, "ftruncate", full)
    said = r"Cannot lock .*: No space left on device"
    with pytest.raises(UserError, match=said), locks.locked(tmp_path):
        pass


def test_a_report_may_be_written_beside_a_training(tmp_path, here, monkeypatch):
    config, told = small(), []
    monkeypatch.setattr(pipeline, "_run", lambda config, directory, mode: told.append(mode))
    pipeline.run(config, tmp_path, "rationales")
    written = files.read_json(tmp_path / "config.json")
    files.write_json(tmp_path / "config.json", {"config": {}})
    with locks.locked(tmp_path):
        pipeline.run(config, tmp_path, "report")
        for mode in ("all", "rationales", "distill", "eval", "export"):
            with pytest.raises(UserError, match=f"{tmp_path} is in use by process"):
                pipeline.run(config, tmp_path, mode)
    assert told == ["rationales", "report"]
    assert files.read_json(tmp_path / "config.json") == {"config": {}}
    pipeline.run(config, tmp_path, "eval")
    assert files.read_json(tmp_path / "config.json") == written
