"""The command line: what it says where a device is the limit."""

import subprocess
import sys

import jax
import pytest

from kpod_jax import main
from tests.conftest import ROOT


@pytest.fixture
def failing(monkeypatch):
    """A job that fails in the devices' runtime with the given message."""

    def fail_with(message: str) -> None:
        def run() -> None:
            raise jax.errors.JaxRuntimeError(message)

        monkeypatch.setattr(main, "_run", run)

    return fail_with


def test_a_full_device_names_the_keys_that_help(failing, capsys):
    failing("INTERNAL: Out of memory allocating 33261886320 bytes.")
    with pytest.raises(SystemExit) as stop:
        main.main(["main"])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert "allocating 33261886320 bytes" in printed and "weighting.batch_size" in printed


def test_other_errors_of_the_runtime_keep_their_traceback(failing):
    failing("INTERNAL: the compiler is at fault")
    with pytest.raises(jax.errors.JaxRuntimeError, match="compiler"):
        main.main(["main"])


def test_a_reader_that_leaves_ends_the_run_quietly():
    """As in `python -m kpod_jax.main … | head`."""
    script = (
        "import sys\n"
        "from kpod_jax import main\n"
        "def run():\n"
        "    while True:\n"
        "        print('a line', flush=True)\n"
        "main._run = run\n"
        "main.main(['main'])\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "a line\n"
        process.stdout.close()
        assert process.wait(60) == 1
        assert process.stderr.read() == ""
