"""gke_xpk.sh against stand-ins for xpk, docker and kubectl."""

import pytest

from tests.launch.test_scripts import KPOD

WHERE = ("--name", "kpod", "--cluster", "c1")
RUN = ("run", *WHERE, "--type", "v5litepod-16", "--image", "host/kpod:1")


@pytest.fixture
def tools(fakes):
    fakes.tool("xpk", "docker", "kubectl")
    return fakes


def test_builds_pushes_and_creates_the_workload(tools):
    result = tools.run(
        "gke_xpk.sh",
        *(*RUN, "--build", "--slices", "2", "--zone", "us-west4-a", "--project", "p"),
        *("--xpk-flag", "--priority=high", "--", *KPOD),
    )
    assert result.returncode == 0, result.stderr
    build, push, create = tools.calls()
    assert build[:2] == ["docker", "build"]
    assert {"--target=tpu", "--tag=host/kpod:1", "--platform=linux/amd64"} < set(build)
    assert push == ["docker", "push", "host/kpod:1"]
    assert create == [
        *"xpk workload create --cluster=c1 --zone=us-west4-a --project=p --workload=kpod".split(),
        *"--tpu-type=v5litepod-16 --num-slices=2 --docker-image=host/kpod:1".split(),
        *"--max-restarts=100 --priority=high".split(),
        f"--command=python -u -m kpod_jax.main {' '.join(KPOD)}",
    ]
    assert "cost money until they are deleted" in result.stderr
    delete = (
        "xpk workload delete --cluster=c1 --zone=us-west4-a --project=p --workload=kpod --force"
    )
    assert f"delete it:  {delete}\n" in result.stderr


def test_a_users_error_is_not_among_the_exit_codes_that_restart(tools):
    tools.run("gke_xpk.sh", *RUN, "--", *KPOD)
    # XPK restarts on 42 and 127 to 255 unless told of more.
    assert not [word for word in tools.calls()[0] if "restart-on" in word]


@pytest.mark.parametrize("words", ["docker build", "docker push", "xpk"])
def test_a_step_that_fails_ends_the_run(tools, words):
    tools.answer(words, {"err": "ERROR: denied\n", "code": 7})
    result = tools.run("gke_xpk.sh", *RUN, "--build", "--", *KPOD)
    assert result.returncode == 7
    assert result.stderr == "ERROR: denied\n"
    assert len(tools.calls()) == ["docker build", "docker push", "xpk"].index(words) + 1


def test_the_other_commands(tools):
    for command in ("logs", "status", "delete"):
        assert tools.run("gke_xpk.sh", command, *WHERE).returncode == 0
    logs, status, delete = tools.calls()
    assert logs[:3] == ["kubectl", "logs", "--follow"]
    assert "jobset.sigs.k8s.io/jobset-name=kpod," in logs[-1]
    assert status == "xpk workload list --cluster=c1 --filter-by-job=^kpod$".split()
    assert delete == "xpk workload delete --cluster=c1 --workload=kpod --force".split()
