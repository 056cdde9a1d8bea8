"""What steps cost, a run that hangs, and a profiler's trace."""

import threading
import time
import types

import jax
import jax.numpy as jnp

from kpod_jax.training import monitoring


def test_a_window_counts_without_pauses(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    window = monitoring.Window()
    with window.waiting():
        clock[0] += 1.0
    clock[0] += 1.0
    window.add(tokens=30, flops=6e9)
    with window.pausing():
        clock[0] += 50.0
    clock[0] += 2.0
    window.add(tokens=10, flops=2e9)
    values = window.values()
    assert values["tokens_per_second"] == 10
    assert values["flops_per_second"] == 2e9
    assert values["data_wait_share"] == 0.25
    assert values["step_seconds_p50"] == 2.0
    assert "mfu" not in values  # A CPU's peak is not known.
    clock[0] += 4.0
    window.add(tokens=8, flops=0)
    assert window.values()["tokens_per_second"] == 2


def test_mfu_is_a_share_of_all_devices_peak(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(
        monitoring.devices, "lookup", lambda kind: monitoring.devices.DEVICES["TPU v4"]
    )
    window = monitoring.Window()
    clock[0] += 2.0
    window.add(tokens=1, flops=275e12 * jax.device_count())
    assert window.values()["mfu"] == 0.5


def test_the_most_memory_in_use_is_told_where_the_device_tells(monkeypatch):
    device = types.SimpleNamespace(
        device_kind="TPU v4", memory_stats=lambda: {"peak_bytes_in_use": 7, "bytes_in_use": 5}
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert monitoring.Window().values()["hbm_peak_bytes"] == 7
    device.memory_stats = lambda: None
    assert "hbm_peak_bytes" not in monitoring.Window().values()


def test_a_run_that_does_not_move_is_ended(capfd):
    ended = threading.Event()
    codes = []

    def end(code):
        codes.append(code)
        ended.set()

    with monitoring.Watchdog(0.2, "distill", end) as dog:
        dog.beat("step 7 of 9")
        assert ended.wait(30)
    assert codes == [134]
    message = capfd.readouterr().err
    assert "no progress for" in message
    assert "step 7 of 9" in message
    assert "process 0 of 1" in message
    assert "Thread" in message  # Where each stands.


def test_a_run_that_moves_is_let_be():
    codes = []
    with monitoring.Watchdog(1000.0, "distill", codes.append) as dog:
        dog.beat("step 1")
    with monitoring.Watchdog(0.0, "distill", codes.append):
        pass
    assert not codes
    assert not dog._thread.is_alive()


def test_a_trace_lies_in_the_work_directory(tmp_path):
    tracer = monitoring.Tracer(tmp_path / "profile", 1, 2)
    add = jax.jit(lambda x: x + 1)
    x = jnp.zeros(())
    for step in range(1, 20):
        tracer.before(step)
        x = add(x)
        tracer.after(step, x, last=step == 19)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    none = monitoring.Tracer(tmp_path / "none", 1, 0)
    none.before(11)
    none.after(11, x, last=True)
    assert not (tmp_path / "none").exists()
