import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpod_jax.weighting.generator import Generator, bounded, gumbel_mask

LOGITS = jnp.array([-4.0, -1.0, 0.0, 0.5, 3.0])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_straight_through_masks_are_hard_and_kept_with_probability_w(temperature):
    count = 20_000
    logits = jnp.broadcast_to(LOGITS, (count, 5))
    masks = np.asarray(gumbel_mask(jax.random.key(0), logits, temperature, True))
    np.testing.assert_allclose(masks, masks.round(), atol=1e-6)
    w = np.asarray(jax.nn.sigmoid(LOGITS))
    error = np.abs(masks.mean(axis=0) - w)
    assert (error < 4 * np.sqrt(w * (1 - w) / count)).all()


def test_straight_through_passes_back_the_gradient_of_the_soft_mask():
    coefficients = jnp.arange(1.0, 6.0)

    def total(logits, straight_through):
        return jnp.sum(coefficients * gumbel_mask(jax.random.key(1), logits, 0.7, straight_through))

    soft = jax.grad(total)(LOGITS, False)
    np.testing.assert_allclose(jax.grad(total)(LOGITS, True), soft, rtol=1e-6)
    m = np.asarray(gumbel_mask(jax.random.key(1), LOGITS, 0.7, False))
    assert ((m > 0) & (m < 1)).all()
    np.testing.assert_allclose(soft, np.asarray(coefficients) * m * (1 - m) / 0.7, rtol=1e-4)


def test_soft_masks_become_hard_as_the_temperature_falls():
    logits = jnp.broadcast_to(LOGITS, (100, 5))
    hard = gumbel_mask(jax.random.key(2), logits, 1.0, True)
    np.testing.assert_allclose(gumbel_mask(jax.random.key(2), logits, 1e-4, False), hard, atol=1e-3)


def test_a_logit_at_its_bound_can_only_be_drawn_back():
    logits = jnp.array([-9.0, -9.0, -1.0, 3.0, 9.0, 9.0])
    np.testing.assert_array_equal(bounded(logits), [-5, -5, -1, 3, 5, 5])
    slopes = jnp.array([2.0, -2.0, 2.0, -2.0, -2.0, 2.0])
    gradient = jax.grad(lambda x: jnp.sum(slopes * bounded(x)))(logits)
    # A descent by it leads from 9 downwards and from -9 upwards, at full speed.
    np.testing.assert_array_equal(gradient, [0, -2, 2, -2, 0, 2])


def test_weights_start_near_keeping_and_padding_changes_nothing():
    generator = Generator(hidden_size=16, num_heads=2)
    embeddings = jax.random.normal(jax.random.key(0), (2, 5, 8))
    mask = jnp.array([[True] * 5, [True] * 3 + [False] * 2])
    params = jax.jit(generator.init)(jax.random.key(1), embeddings, mask)
    apply = jax.jit(generator.apply)
    logits = np.asarray(apply(params, embeddings, mask))
    assert logits.shape == (2, 5)
    assert (np.abs(logits - 2) < 0.5).all()
    # The same rows amid more padding, which holds other values.
    wide = jnp.concatenate([embeddings, jnp.full((2, 4, 8), 7.0)], axis=1).at[1, 3:].set(-3.0)
    wide_mask = jnp.pad(mask, [(0, 0), (0, 4)])
    again = np.asarray(apply(params, wide, wide_mask))
    np.testing.assert_allclose(again[0, :5], logits[0], atol=1e-5)
    np.testing.assert_allclose(again[1, :3], logits[1, :3], atol=1e-5)


def test_a_weight_depends_on_what_stands_beside_the_token():
    generator = Generator(hidden_size=16, num_heads=2)
    embeddings = jax.random.normal(jax.random.key(0), (1, 4, 8))
    mask = jnp.ones((1, 4), bool)
    params = jax.jit(generator.init)(jax.random.key(1), embeddings, mask)
    apply = jax.jit(generator.apply)
    logits = np.asarray(apply(params, embeddings, mask))
    swapped = np.asarray(apply(params, embeddings[:, ::-1], mask))[:, ::-1]
    assert np.abs(logits - swapped).max() > 1e-4  # It knows order, not only the set of tokens.


def test_heads_begin_at_one_neighbour_each():
    generator = Generator(hidden_size=32, num_heads=4)
    mask = jnp.ones((1, 40), bool)
    params = jax.jit(generator.init)(jax.random.key(0), jnp.zeros((1, 40, 8)), mask)["params"]
    bias = np.asarray(params["relative_bias"])
    zero = bias.shape[1] // 2
    assert (bias.argmax(axis=1) - zero).tolist() == [-1, 1, -2, 2]
    share = np.exp(bias) / np.exp(bias).sum(axis=1, keepdims=True)
    assert (share.max(axis=1) > 0.5).all() and (share.max(axis=1) < 0.9).all()
