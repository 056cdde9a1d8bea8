"""Peaks of accelerators, against their specifications where these say the same in another way."""

import jax
import pytest

from kpod_jax.parallel import devices


def test_a_cpu_has_no_known_peak():
    assert devices.lookup(jax.devices("cpu")[0].device_kind) is None
    assert devices.lookup("TPU v99") is None


@pytest.mark.parametrize(
    ("kind", "chips", "petaflops"), [("TPU v5 lite", 256, 50.63), ("TPU v6 lite", 256, 234.9)]
)
def test_chips_add_up_to_the_peak_of_their_pod(kind, chips, petaflops):
    device = devices.lookup(kind)
    assert device is not None
    assert device.peak_flops * chips == pytest.approx(petaflops * 1e15, rel=0.01)


def test_v3_is_counted_by_cores():
    core = devices.lookup("TPU v3")
    assert core is not None
    assert 2 * core.peak_flops == 123e12
    assert 2 * core.hbm_bytes == 32 << 30


def test_both_names_of_v5p_are_one_device():
    assert devices.lookup("TPU v5") is devices.lookup("TPU v5p") is not None


@pytest.mark.parametrize("kind", devices.DEVICES)
def test_units(kind):
    """A slip of a thousand, or of bits for bytes, leaves these ranges or balances."""
    device = devices.DEVICES[kind]
    assert 16e9 <= device.hbm_bytes <= 192e9
    # FLOPs that must be done with a byte of memory, and bytes of memory to one of the links.
    assert 100 < device.peak_flops / device.hbm_bandwidth < 600
    assert 3 < device.hbm_bandwidth / device.link_bandwidth < 11
