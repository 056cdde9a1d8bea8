"""slurm.sbatch against stand-ins for srun, squeue and scontrol: what is requeued, what not."""

import os
import signal
import subprocess
import time

import pytest

from tests.conftest import ROOT
from tests.launch.test_scripts import HOSTILE, KPOD

JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_ON_NODE": "18",
    "KPOD_GRACE_SECONDS": "2",
}
REQUEUE = ["scontrol", "requeue", "7"]


@pytest.fixture
def slurm(fakes):
    fakes.tool("srun", "squeue", "scontrol")
    (fakes.home / ".venv/bin").mkdir(parents=True)
    (fakes.home / ".venv/bin/python").symlink_to("/bin/true")
    return fakes


def test_one_process_a_gpu_with_the_arguments_as_they_were(slurm):
    assert slurm.run("slurm.sbatch", "--", *KPOD, *HOSTILE, **JOB).returncode == 0
    (call,) = slurm.calls()
    python = str(slurm.home / ".venv/bin/python")
    options = ["--ntasks-per-node=4", "--cpus-per-task=4", "--kill-on-bad-exit=1", "--label"]
    assert call == ["srun", *options, python, "-u", "-m", "kpod_jax.main", *KPOD, *HOSTILE]


def test_one_process_a_node_is_given_all_gpus(slurm):
    (slurm.home / "bin/srun").unlink()
    script = slurm.home / "bin/srun"
    script.write_text('#!/bin/bash\necho "$JAX_LOCAL_DEVICE_IDS" "$1" "$2" >"$HOME/seen"')
    script.chmod(0o755)
    assert slurm.run("slurm.sbatch", "--processes", "node", "--", *KPOD, **JOB).returncode == 0
    assert (slurm.home / "seen").read_text() == "0,1,2,3 --ntasks-per-node=1 --cpus-per-task=18\n"


@pytest.mark.parametrize("code", [0, 1, 2, 137])
def test_an_end_that_slurm_did_not_ask_for_is_not_requeued(slurm, code):
    slurm.answer("srun", {"code": code})
    assert slurm.run("slurm.sbatch", "--", *KPOD, **JOB).returncode == code
    assert REQUEUE not in slurm.calls()


@pytest.mark.parametrize(
    ("on_term", "job", "requeued"),
    [
        ("exit 143", "RUNNING", True),
        ("exit 1", "RUNNING", True),
        ("", "RUNNING", True),  # The processes do not listen.
        ("exit 0", "RUNNING", False),  # They had just ended.
        ("exit 2", "RUNNING", False),
        ("exit 143", "COMPLETING", False),  # The job was cancelled.
    ],
)
def test_a_warning_is_passed_on_and_the_job_requeued(slurm, on_term, job, requeued):
    slurm.answer("squeue", {"out": f"{job}\n"})
    srun = slurm.home / "bin/srun"
    srun.unlink()
    start = 'echo $$ >"$HOME/new"; mv "$HOME/new" "$HOME/started"; sleep 60 & wait; wait'
    srun.write_text(f"#!/bin/bash\ntrap '{on_term}' TERM; {start}")
    srun.chmod(0o755)
    scancel = slurm.home / "bin/scancel"
    scancel.write_text('#!/bin/bash\n[[ $* == "--signal=TERM 7" ]] && kill "$(<"$HOME/started")"')
    scancel.chmod(0o755)
    process = slurm.start("slurm.sbatch", "--", *KPOD, **JOB)
    try:
        while not (slurm.home / "started").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)  # To the batch shell alone, as --signal=B: does.
        process.wait(timeout=30)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # SLURM ends what still runs.
    assert (REQUEUE in slurm.calls()) == requeued
    assert "telling the processes" in process.communicate()[1]


@pytest.mark.parametrize(("job", "requeued"), [("RUNNING", True), ("COMPLETING", False)])
def test_processes_that_slurm_told_itself_are_requeued(slurm, job, requeued):
    slurm.answer("srun", {"code": 143})
    slurm.answer("squeue", {"out": f"{job}\n"})
    assert slurm.run("slurm.sbatch", "--", *KPOD, **JOB).returncode == 143
    assert (REQUEUE in slurm.calls()) == requeued


def test_slurm_is_told_what_requeueing_needs():
    text = (ROOT / "launch/slurm.sbatch").read_text()
    options = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --signal=B:TERM@120"} < set(options)
    assert "#SBATCH --open-mode=append" in options  # A requeued job keeps its log.
    # sbatch reads options up to the first command.
    commands = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert text.index(options[-1]) < text.index(commands[0])
    read = subprocess.run(["bash", "-n", ROOT / "launch/slurm.sbatch"])
    assert read.returncode == 0


@pytest.mark.parametrize("option", [(), ("--python", "/nowhere/python")])
def test_a_missing_environment_is_named(fakes, option):
    fakes.tool("srun")
    result = fakes.run("slurm.sbatch", *option, "--", *KPOD, **JOB)
    assert result.returncode == 2
    assert (option[1] if option else str(fakes.home / ".venv/bin/python")) in result.stderr
