"""A run in several processes, and one that is told to end."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
import pytest

from kpod_jax.parallel import processes
from kpod_jax.training.checkpoints import Checkpoints
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from tests.conftest import LLAMA_JSON, ROOT
from tests.test_pipeline import environment

# All four devices, whatever the processes. The answerer is random, so there is no gap to ask for.
SETTINGS = (
    "--config=configs/quickstart.py",
    "--config.data.train_examples=24",
    "--config.data.validation_examples=8",
    "--config.data.test_examples=6",
    "--config.student.init=random",
    "--config.student.tokenizer=kpod_jax/assets/tiny_t5",
    "--config.weighting.answerer=",
    "--config.weighting.fit=same",
    "--config.weighting.fit_masked_steps=2",
    "--config.weighting.steps=2",
    "--config.weighting.batch_size=8",
    "--config.weighting.min_gap=-99",
    "--config.weighting.allow_failed=True",
    "--config.weighting.prefixes=sampled",
    "--config.schedule.phase_steps=0",
    "--config.distill.epochs=2",
    "--config.distill.batch_size=8",
    "--config.distill.buckets=1",
    "--config.distill.checkpoint_every=2",
    "--config.distill.learning_rate=1e-3",
    "--config.eval.max_new_tokens=8",
)


def start(
    workdir: pathlib.Path, count: int, student: pathlib.Path, *flags: str
) -> list[subprocess.Popen]:
    """The processes of one run, four devices together."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    env = environment(workdir.parent) | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}"
    }
    command = [sys.executable, "-m", "kpod_jax.main", *SETTINGS, f"--workdir={workdir}"]
    command += [f"--config.student.model={student}", *flags]
    together = [f"--coordinator=localhost:{port}", f"--num_processes={count}"]
    return [
        subprocess.Popen(
            [*command, *(together if count > 1 else []), *([f"--process_id={i}"] * (count > 1))],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(count)
    ]


def finish(running: list[subprocess.Popen]) -> list[str]:
    """What each printed; all of them must end well."""
    with_output: list[str] = [""] * len(running)

    def read(i: int) -> None:
        with_output[i] = running[i].communicate()[0]

    readers = [threading.Thread(target=read, args=(i,)) for i in range(len(running))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [process.returncode for process in running] == [0] * len(running), with_output
    return with_output


def test_flags_that_say_half_are_named():
    with pytest.raises(UserError, match="need --coordinator"):
        processes.join(num_processes=2)
    with pytest.raises(UserError, match="--process_id=2: expected"):
        processes.join("localhost:1", 2, 2)
    processes.join("off")


def test_work_of_the_first_process_gives_its_result_and_its_error():
    assert processes.run_on_first(lambda: "done") == "done"

    def fails():
        raise UserError("no such file")

    with pytest.raises(UserError, match="no such file"):
        processes.run_on_first(fails)


def test_sigterm_is_noted_in_a_loop_and_raised_elsewhere():
    before = signal.getsignal(signal.SIGTERM)
    try:
        processes.raise_on_sigterm()
        with processes.defer_sigterm() as told:
            assert not told()
            os.kill(os.getpid(), signal.SIGTERM)
            assert told()
        with pytest.raises(processes.Preempted):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)  # Till the handler has run.
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_listens_in_vain():
    found = []

    def work():
        with processes.defer_sigterm() as told:
            found.append(told())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_all_but_the_first_process_write_nothing(tmp_path):
    files.write_text(tmp_path / "a", "first")
    try:
        files.set_writer(False)
        files.write_text(tmp_path / "a", "other")
        files.write_text(tmp_path / "b", "other")
        files.remove(tmp_path / "a")
    finally:
        files.set_writer(True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "first"
    files.remove(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def parameters(workdir: pathlib.Path) -> Any:
    """Of the student's last step, on this process's first device, whoever saved them."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with Checkpoints(workdir / "checkpoints/student", read_only=True) as checkpoints:
        stored = checkpoints._manager.item_metadata(6)["state"].tree["params"]
        wanted = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), stored
        )
        return checkpoints.restore_params(wanted, 6).state


def check_like(workdir: pathlib.Path, expected: pathlib.Path) -> None:
    """Parameters after the last step, to what another order of sums changes."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
        parameters(workdir),
        parameters(expected),
    )


SWEEP = """
from configs import quickstart

def get_runs(argument):
    runs = {name: quickstart.get_config("none") for name in ("a", "b")}
    for seed, config in enumerate(runs.values()):
        config.seed = seed
        config.data.train_examples, config.data.validation_examples = 24, 8
        config.data.test_examples, config.eval.max_new_tokens = 6, 8
    return runs
"""


@pytest.mark.slow
def test_a_sweep_in_two_processes(tmp_path):
    """Each run is made by both together, and what is done is not done again."""
    runs = tmp_path / "runs.py"
    runs.write_text(SWEEP)
    flags = ("--mode=sweep", f"--sweep={runs}")  # The other settings are passed over.
    for made in (1, 0):
        outputs = finish(start(tmp_path / "sweep", 2, runs, *flags))
        assert "\nReport: " in outputs[0] and "Report: " not in outputs[1]
        assert outputs[0].count("reused") == made
        assert ("eval: " in outputs[0]) == bool(made) and "eval: " not in outputs[1]
    result = files.read_json(tmp_path / "sweep/comparison.json")
    assert [seed["total"] for seed in result["rows"][0]["cells"][0]["seeds"]] == [6, 6]


# It takes minutes where processes share cores.
@pytest.mark.skipif(
    (os.cpu_count() or 1) < 4 and not os.environ.get("KPOD_TEST_PROCESSES"),
    reason="four processes want four cores; KPOD_TEST_PROCESSES=1 tries it on fewer",
)
@pytest.mark.slow
def test_several_processes_do_what_one_does(tmp_path):
    """Of two and of four; the checkpoints of four are gone on with by one and by two."""
    student = tmp_path / "config.json"
    student.write_text(json.dumps(LLAMA_JSON))
    one = tmp_path / "1"
    finish(start(one, 1, student))
    for count in (2, 4):
        many = tmp_path / str(count)
        outputs = finish(start(many, count, student, "--config.mesh.fsdp=2"))
        for name in ("token_weights.npz", "step_difficulty.npz", "schedule.npz"):
            expected, found = files.read_npz(one / name), files.read_npz(many / name)
            for key in expected:
                np.testing.assert_allclose(
                    found[key], expected[key], rtol=2e-4, atol=2e-5, err_msg=name
                )
        check_like(many, one)
        lines = [(path / "metrics.jsonl").read_text().splitlines() for path in (one, many)]
        assert len(lines[0]) == len(lines[1])
        # The first process alone speaks and writes.
        assert "\neval: test accuracy" in outputs[0]
        assert not any("eval:" in output for output in outputs[1:])
        assert (many / "report.html").exists()
        assert not list(many.rglob("*.tmp"))
    for count in (1, 2):
        fewer = tmp_path / f"4 to {count}"
        shutil.copytree(tmp_path / "4", fewer)
        shutil.rmtree(fewer / "checkpoints/student/6")
        (fewer / ".stages/distill.json").unlink()
        outputs = finish(start(fewer, count, student, "--mode=distill"))
        assert "distill: 6 steps" in outputs[0]
        check_like(fewer, tmp_path / "4")
