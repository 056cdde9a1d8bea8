"""The command line: what it says where a device is the limit."""

import jax
import pytest

from kpod_jax import main


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
