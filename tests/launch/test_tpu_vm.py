"""tpu_vm.sh against a stand-in for gcloud: the order of calls, preemptions, what is left."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.conftest import ROOT
from tests.launch.test_scripts import HOSTILE, KPOD

WHERE = ("--name", "kpod", "--zone", "us-west4-a")
RUN = ("run", *WHERE, "--type", "v5litepod-16", "--poll", "0")
MISSING = {"err": "ERROR: NOT_FOUND: Resource kpod was not found\n", "code": 1}
DOWN = {"err": "ERROR: there is no network\n", "code": 1}


def state(name):
    return {"out": f"{name}\n"}


@pytest.fixture
def gcloud(fakes):
    """All goes well: the TPU is new, and the command ends with exit code 0."""
    fakes.tool("gcloud")
    (fakes.home / "init.sh").write_text(
        "cd repository && git init -q && git add . && git commit -qm code"
    )
    assert fakes.run(str(fakes.home / "init.sh")).returncode == 0
    return fakes


def steps(fakes):
    """The calls in a word each."""
    result = []
    for call in fakes.calls():
        (command,) = [word for word in call if word.startswith("--command=")] or [""]
        result.append(command.split()[2] if command else next(w for w in call[3:] if w in VERBS))
    return result


VERBS = ("create", "describe", "delete", "scp")
ATTEMPT = ["scp", "install", "start", "follow", "code"]


def test_a_run_from_nothing_to_deletion(gcloud):
    gcloud.answer("describe", MISSING, state("WAITING_FOR_RESOURCES"), state("ACTIVE"))
    gcloud.answer("code", {"out": "0\n"})
    result = gcloud.run("tpu_vm.sh", *RUN, "--spot", "--create-flag", "--labels=a=b c", "--", *KPOD)
    assert result.returncode == 0, result.stderr
    waiting = ["describe", "create", "describe", "describe"]
    assert steps(gcloud) == [*waiting, *ATTEMPT, "delete"]
    calls = gcloud.calls()
    assert calls[1] == [
        *"gcloud compute tpus queued-resources create kpod --zone=us-west4-a".split(),
        *"--node-id=kpod --accelerator-type=v5litepod-16".split(),
        *"--runtime-version=v2-alpha-tpuv5-lite --spot".split(),
        "--labels=a=b c",
    ]
    assert calls[-1][3:] == "queued-resources delete kpod --zone=us-west4-a --force --quiet".split()
    workers = [word for call in calls for word in call if word.startswith("--worker=")]
    assert workers == ["--worker=all"] * 3 + ["--worker=0"] * 2
    assert "IS LEFT" not in result.stderr
    assert not list(gcloud.home.glob("tmp.*"))


def test_a_dry_run_prints_what_a_run_calls(gcloud):
    line = (*RUN, "--project", "p", "--", *KPOD, *HOSTILE)
    printed = gcloud.run("tpu_vm.sh", *line[:1], "--dry-run", *line[1:]).stdout.splitlines()
    assert gcloud.calls() == []
    gcloud.answer("describe", MISSING, state("ACTIVE"))
    gcloud.answer("code", {"out": "0\n"})
    gcloud.run("tpu_vm.sh", *line)
    assert [line.split()[0] for line in printed].count("gcloud") == len(gcloud.calls())
    for text, call in zip(
        [line for line in printed if line.startswith("gcloud")], gcloud.calls(), strict=True
    ):
        read = subprocess.run(["bash", "-c", f"printf '%s\\0' {text}"], capture_output=True)
        words = read.stdout.decode().split("\0")[:-1]
        # The folder of the archive is another one.
        assert [w for w in words if "tar.gz" not in w] == [w for w in call if "tar.gz" not in w]


@pytest.mark.parametrize("lost", ["SUSPENDED", "PREEMPTED", "FAILED"])
def test_goes_on_after_a_preemption_with_the_same_command(gcloud, lost):
    gcloud.answer("describe", MISSING, state("ACTIVE"), state(lost), MISSING, state("ACTIVE"))
    gcloud.answer("follow", {"code": 255}, {})
    gcloud.answer("code", {"code": 255}, {"out": "0\n"})
    gcloud.answer("delete", {"code": 1}, {})  # Too early, the first time.
    result = gcloud.run("tpu_vm.sh", *RUN, "--", *KPOD, *HOSTILE)
    assert result.returncode == 0, result.stderr
    up = ["describe", "create", "describe"]
    lost_one = [*up, *ATTEMPT, "describe", "delete", "delete"]
    assert steps(gcloud) == [*lost_one, *up, *ATTEMPT, "delete"]
    starts = [call for call in gcloud.calls() if any(" start " in word for word in call)]
    assert len(starts) == 2
    assert starts[0] == starts[1]
    assert f"kpod is {lost}" in result.stderr


def test_a_resource_that_fails_before_it_is_active_is_asked_for_again_and_then_given_up(gcloud):
    gcloud.answer("describe", *[MISSING, state("FAILED")] * 3)
    result = gcloud.run("tpu_vm.sh", *RUN, "--max-restarts", "2", "--", *KPOD)
    assert result.returncode == 1
    assert steps(gcloud).count("create") == 3
    assert "Given up after 2 restarts" in result.stderr
    assert "kpod (v5litepod-16, us-west4-a) IS LEFT" in result.stderr


def test_a_broken_connection_is_no_preemption(gcloud):
    gcloud.answer("describe", MISSING, state("ACTIVE"), DOWN, state("ACTIVE"))
    gcloud.answer("follow", {"code": 255}, {"code": 255}, {})
    gcloud.answer("code", {"code": 255}, {"code": 255}, {"out": "running\n"}, {"out": "0\n"})
    result = gcloud.run("tpu_vm.sh", *RUN, "--", *KPOD)
    assert result.returncode == 0, result.stderr
    assert steps(gcloud).count("start") == steps(gcloud).count("create") == 1
    assert steps(gcloud).count("delete") == 1  # At the end.
    assert steps(gcloud).count("follow") == 4
    assert "there is no network" in result.stderr


def test_a_command_that_vanished_is_started_again_on_the_same_machine(gcloud):
    gcloud.answer("describe", MISSING, state("ACTIVE"))
    gcloud.answer("code", {"out": "vanished\n"}, {"out": "0\n"})
    assert gcloud.run("tpu_vm.sh", *RUN, "--", *KPOD).returncode == 0
    assert steps(gcloud).count("create") == steps(gcloud).count("delete") == 1
    assert steps(gcloud).count("start") == 2


@pytest.mark.parametrize("code", [1, 2, 143])
def test_an_error_of_the_command_is_not_tried_again_and_the_machine_is_named(gcloud, code):
    gcloud.answer("describe", MISSING, state("ACTIVE"), state("SUSPENDED"))
    gcloud.answer("code", {"out": f"{code}\n"})
    result = gcloud.run("tpu_vm.sh", *RUN, "--", *KPOD)
    assert result.returncode == code
    assert steps(gcloud).count("start") == 1
    assert "delete" not in steps(gcloud)
    delete = "gcloud compute tpus queued-resources delete kpod --zone=us-west4-a --force --quiet"
    assert f"delete it:  {delete}\n" in result.stderr
    assert "launch/tpu_vm.sh logs --name kpod --zone us-west4-a\n" in result.stderr


def test_what_is_there_is_used_and_kept_if_told(gcloud):
    gcloud.answer("describe", state("ACTIVE"))
    gcloud.answer("code", {"out": "0\n"})
    result = gcloud.run("tpu_vm.sh", *RUN, "--keep", "--", *KPOD)
    assert result.returncode == 0
    assert steps(gcloud) == ["describe", *ATTEMPT]
    assert "IS LEFT" in result.stderr


@pytest.mark.parametrize(
    ("words", "left"), [("create", False), ("scp", True), ("install", True), ("start", True)]
)
def test_a_step_that_fails_ends_the_run_and_says_whether_something_is_left(gcloud, words, left):
    states = [MISSING, MISSING] if words == "create" else [MISSING, state("ACTIVE")]
    gcloud.answer("describe", *states)
    gcloud.answer(words, {"err": "ERROR: quota\n", "code": 1})
    result = gcloud.run("tpu_vm.sh", *RUN, "--", *KPOD)
    assert result.returncode == 1
    assert "ERROR: quota" in result.stderr
    assert ("IS LEFT" in result.stderr) == left
    assert "follow" not in steps(gcloud)
    assert steps(gcloud).count("create") == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_says_what_is_left_and_how_to_delete_it(gcloud, number, code):
    gcloud.answer("describe", MISSING, state("ACTIVE"))
    gcloud.answer("follow", {"sleep": 60})
    process = gcloud.start("tpu_vm.sh", *RUN, "--project", "p", "--", *KPOD)
    while "follow" not in steps(gcloud):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert "kpod (v5litepod-16, us-west4-a) IS LEFT: it costs money" in said
    assert "--project=p --force --quiet" in said
    assert "logs --name kpod --zone us-west4-a --project p\n" in said
    assert not list(gcloud.home.glob("tmp.*"))


def test_the_other_commands(gcloud):
    for command in ("logs", "status", "stop", "delete"):
        assert gcloud.run("tpu_vm.sh", command, *WHERE).returncode == 0
    assert steps(gcloud) == ["follow", "describe", "stop", "delete"]


def test_git_url_instead_of_a_copy(gcloud):
    gcloud.answer("describe", state("ACTIVE"))
    gcloud.answer("code", {"out": "0\n"})
    url = "https://host/a b.git"
    gcloud.run("tpu_vm.sh", *RUN, "--repo", url, "--ref", "v1", "--", *KPOD)
    copy, install = gcloud.calls()[1:3]
    assert not [word for word in copy if "tar.gz" in word]
    assert install[-1] == f"--command=bash tpu_worker.sh install '{url}' v1"


@pytest.fixture
def worker(gcloud):
    """One worker's home directory, reached by a gcloud that does what it is told."""
    (gcloud.home / "bin/uv").symlink_to(gcloud.home / "fake.py")
    gcloud.answer("describe", state("ACTIVE"))
    gcloud.answer("tpu-vm ssh", {"exec": True})
    return gcloud


def program(home, body):
    """What stands in for the environment's Python."""
    path = home / "kpod-jax/.venv/bin/python"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def unpacked(fakes):
    """As scp leaves it in the worker's home."""
    script = (ROOT / "launch/tpu_worker.sh").read_bytes()
    (fakes.home / "tpu_worker.sh").write_bytes(script)
    for name in ("kpod_jax", "configs"):
        (fakes.home / "from" / name).mkdir(parents=True)
    (fakes.home / "from/requirements.txt").write_text("")
    subprocess.run(
        ["tar", "-C", fakes.home / "from", "-czf", fakes.home / "kpod-jax.tar.gz", "."], check=True
    )


def test_hostile_arguments_reach_the_program_through_two_shells(worker):
    unpacked(worker)
    (worker.home / "kpod-jax.env").write_text("TOKEN=from-the-file\n")
    program(worker.home, 'printf "%s\\0" "$TOKEN" "$@" >../seen; echo the log; exit 2')
    result = worker.run("tpu_vm.sh", *RUN, "--", *KPOD, *HOSTILE)
    assert result.returncode == 2, result.stderr
    seen = (worker.home / "seen").read_text().split("\0")[:-1]
    assert seen == ["from-the-file", "-u", "-m", "kpod_jax.main", *KPOD, *HOSTILE]
    assert "the log\n" in result.stdout
    assert (worker.home / "kpod-jax.env").stat().st_mode & 0o777 == 0o600
    assert "from-the-file" not in json.dumps(worker.calls())
    uv = [call for call in worker.calls() if call[0] == "uv"]
    assert [call[1] for call in uv] == ["pip"]  # The environment was there.
    assert uv[0][-3:] == ["requirements.txt", "jax[tpu]", "gcsfs>=2025.3,<2027"]


def test_a_running_command_is_left_alone_until_it_is_stopped(worker):
    unpacked(worker)
    program(worker.home, "echo on; sleep 60")
    process = worker.start("tpu_vm.sh", *RUN, "--", *KPOD)
    while "follow" not in steps_of_ssh(worker):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    second = worker.run("tpu_vm.sh", *RUN, "--", *KPOD)
    assert second.returncode == 1
    assert "is running on" in second.stderr
    assert worker.run("tpu_vm.sh", "stop", *WHERE).returncode == 0
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said


def steps_of_ssh(fakes):
    return [
        word.split()[2] for call in fakes.calls() for word in call if word.startswith("--command=")
    ]


def test_the_copy_holds_what_git_tracks_with_changes_not_yet_committed(fakes):
    text = (ROOT / "launch/tpu_vm.sh").read_text()
    pack = text.split("PACK='")[1].split("'\n")[0]
    repository = fakes.home / "other"
    script = f"""
        set -e; git init -q {repository}; cd {repository}
        echo old >tracked; echo ignored >.gitignore; git add .; git commit -qm one
        bash -c '{pack}' pack . ../clean.tar.gz
        echo new >tracked; echo new >ignored
        bash -c '{pack}' pack . ../changed.tar.gz
        git diff --quiet && exit 1
        tar -xOf ../clean.tar.gz tracked; tar -xOf ../changed.tar.gz tracked
        tar -tf ../changed.tar.gz"""
    (fakes.home / "pack.sh").write_text(script)
    result = fakes.run(str(fakes.home / "pack.sh"))
    assert result.stdout.split() == ["old", "new", ".gitignore", "tracked"], result.stderr
