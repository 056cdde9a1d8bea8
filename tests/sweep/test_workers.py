import signal
import sys
import time

import pytest

from kpod_jax.sweep import workers


def python(code):
    return lambda name: [sys.executable, "-S", "-c", code, name]


def test_codes_and_logs(tmp_path):
    code = (
        "import os, sys; name = sys.argv[1]; print('I am', name, flush=True)\n"
        "if name == 'b': sys.exit(3)\n"
        "if name == 'c': os.kill(os.getpid(), 9)"
    )
    codes = workers.run_jobs(
        ["a", "b", "c"], python(code), parallel=3, log=lambda name: tmp_path / name / "log.txt"
    )
    assert codes == {"a": 0, "b": 3, "c": -signal.SIGKILL}
    assert (tmp_path / "b/log.txt").read_text() == "I am b\n"
    workers.run_jobs(["a"], python(code), parallel=2, log=lambda name: tmp_path / name / "log.txt")
    assert (tmp_path / "a/log.txt").read_text() == "I am a\n" * 2


def test_no_more_than_so_many_at_a_time_and_none_before_it_is_ready():
    seen, most = [], []

    def tell(at_work, ended):
        most.append(len(at_work))
        seen.extend(ended)

    def ready(name, at_work):
        return name != "a" or "b" not in at_work

    workers.run_jobs(
        list("bacd"), python("import time; time.sleep(.3)"), parallel=2, ready=ready, tell=tell
    )
    assert max(most) == 2
    assert sorted(seen) == list("abcd")
    assert set(seen[:2]) == {"b", "c"}  # "a" waited for "b", and "c" did not wait for "a".


def test_processes_are_ended_with_this_one(tmp_path):
    """What ends the sweep, such as Ctrl-C, leaves no run behind."""
    started = tmp_path / "started"
    code = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(60)"

    def tell(at_work, ended):
        if started.exists():
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        workers.run_jobs(["a"], python(code), tell=tell)
    assert time.monotonic() - began < 50  # It did not sleep on.


def test_shares_of_cores_and_gpus():
    assert [workers.core_subset({4, 5, 6, 7, 8}, slot, 2) for slot in (0, 1)] == [
        {4, 6, 8}, {5, 7},
    ]  # fmt: skip
    assert [workers.core_subset({0, 1}, slot, 3) for slot in range(3)] == [{0}, {1}, {0}]
    assert workers.gpu_environment([], 0, 2) == {}
    assert workers.gpu_environment(["0", "1"], 1, 2) == {"CUDA_VISIBLE_DEVICES": "1"}
    three = [workers.gpu_environment(["2", "5"], slot, 3) for slot in range(3)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in three] == ["2", "5", "2"]
    assert three[0]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.450"
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in three[1]


def test_gpus_are_those_that_the_environment_allows(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 1")
    assert workers.visible_gpus() == ["3", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert workers.visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert workers.visible_gpus() == []
