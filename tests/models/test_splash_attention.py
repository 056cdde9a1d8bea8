"""The kernel of JAX in its interpreted form against plain attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpod_jax.models import layers, splash_attention
from kpod_jax.parallel import sharding


def inputs(length=160, rows=4, heads=4, key_heads=2, width=24):
    rng = np.random.default_rng(0)
    shapes = [(rows, length, n, width) for n in (heads, key_heads, key_heads)]
    arrays = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    ends = rng.integers(1, length, (rows, 2))
    segments = (np.arange(length) >= ends[:, :1]).astype(int) + (np.arange(length) >= ends[:, 1:])
    return arrays, jnp.asarray(segments, jnp.int32)


def plain(query, key, value, segments):
    seen = jnp.tril(segments[:, :, None] == segments[:, None, :])[:, None]
    return layers.Attention("xla", 0.3)(query, key, value, None, seen)


def splash(query, key, value, segments):
    return splash_attention.attend(query, key, value, segments, scale=0.3, interpret=True)


@pytest.mark.parametrize("devices", [1, 4])
def test_values_and_gradients_are_those_of_plain_attention(devices):
    arrays, segments = inputs()
    mesh = sharding.make_mesh(
        1, devices // 2 or 1, 2 if devices > 1 else 1, devices=jax.devices()[:devices]
    )

    def both(attend):
        def loss(*arrays):
            result = attend(*arrays, segments)
            return (result * jnp.cos(jnp.arange(result.size).reshape(result.shape))).sum(), result

        with sharding.use(mesh):
            grads, result = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
        return result, *grads

    for found, expected in zip(both(splash), both(plain), strict=True):
        assert np.abs(expected).max() > 0.5
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_it_is_left_out_where_the_kernel_does_not_fit(monkeypatch):
    (query, key, _), _ = inputs(512)
    assert not splash_attention.fits(query, key)  # No TPU.
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    assert splash_attention.fits(query, key)
    assert not splash_attention.fits(query[:, :500], key[:, :500])
    assert not splash_attention.fits(query[:, :512], jnp.concatenate([key, key], 1))
    mesh = sharding.make_mesh(1, 1, 4, devices=jax.devices()[:4])
    with sharding.use(mesh):  # Two heads of keys for four devices.
        assert not splash_attention.fits(query, key)
