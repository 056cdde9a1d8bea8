import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpod_jax.training import costs, losses

B, U, D, V = 3, 11, 5, 7


def example(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    hidden = jax.random.normal(keys[0], (B, U, D))
    head = jax.random.normal(keys[1], (D, V))
    targets = jax.random.randint(keys[2], (B, U), 0, V)
    supervised = jax.random.bernoulli(keys[3], 0.5, (B, U)).at[1].set(False)
    return hidden, head, targets, supervised


def plain(hidden, head, targets, supervised):
    log_probs = jax.nn.log_softmax(hidden @ head)
    return jnp.where(supervised, -jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0], 0)


@pytest.mark.parametrize("chunk", [4, 11, 32])
def test_token_losses_are_those_of_the_plain_log_softmax(chunk):
    hidden, head, targets, supervised = example()
    weights = jax.random.uniform(jax.random.key(9), (B, U))

    def ours(hidden, head):
        return losses.token_losses(hidden, targets, supervised, lambda h: h @ head, chunk)

    expected = plain(hidden, head, targets, supervised)
    np.testing.assert_allclose(ours(hidden, head), expected, atol=1e-5)
    gradient = jax.grad(lambda *a: jnp.sum(weights * ours(*a)), (0, 1))(hidden, head)

    def total(hidden, head):
        return jnp.sum(weights * plain(hidden, head, targets, supervised))

    expected = jax.grad(total, (0, 1))(hidden, head)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected)
    assert (np.asarray(gradient[0])[~np.asarray(supervised)] == 0).all()


def test_what_is_not_supervised_is_zero_even_where_it_would_be_infinite():
    hidden, head, targets, supervised = example()
    hidden = jnp.where(supervised[..., None], hidden, jnp.inf)
    nll = losses.token_losses(hidden, targets, supervised, lambda h: h @ head, 4)
    assert (np.asarray(nll)[~np.asarray(supervised)] == 0).all()
    assert np.isfinite(nll).all()
    nothing = losses.token_losses(hidden, targets, supervised & False, lambda h: h @ head)
    np.testing.assert_array_equal(nothing, 0)


def test_logits_of_half_precision_are_summed_in_float32():
    hidden, head, targets, supervised = example()
    nll = losses.token_losses(
        hidden, targets, supervised, lambda h: (h @ head).astype(jnp.bfloat16), 4
    )
    rounded = jax.nn.log_softmax((hidden @ head).astype(jnp.bfloat16).astype(jnp.float32))
    picked = -jnp.take_along_axis(rounded, targets[..., None], -1)[..., 0]
    assert nll.dtype == jnp.float32
    np.testing.assert_allclose(nll, jnp.where(supervised, picked, 0), atol=1e-5)


def test_the_weighted_loss_is_a_sum_over_what_is_supervised():
    nll = jnp.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    weights = jnp.array([[0.5, 0.0, 1.0], [0.25, 7.0, 7.0]])
    supervised = jnp.array([[True, True, True], [True, False, False]])
    assert float(losses.weighted_loss(nll, weights, supervised)) == 0.5 + 4.0 + 2.0


@pytest.mark.parametrize("chunk", [4, 32])
@pytest.mark.parametrize("supervised_rows", [0, B])
def test_the_weighted_loss_and_its_gradient_are_made_in_one(chunk, supervised_rows):
    hidden, head, targets, supervised = example()
    supervised = supervised & (jnp.arange(B) < supervised_rows)[:, None]
    weights = jax.random.uniform(jax.random.key(9), (B, U))

    def at_once(hidden, head, weights):
        total, nll = losses.weighted_token_losses(
            hidden, targets, supervised, weights, lambda h: h @ head, chunk
        )
        return 3 * total + jnp.sum(nll), nll  # What nll adds is not differentiated.

    def in_two(hidden, head, weights):
        nll = losses.token_losses(hidden, targets, supervised, lambda h: h @ head, chunk)
        total = losses.weighted_loss(nll, weights, supervised)
        return 3 * total + jnp.sum(jax.lax.stop_gradient(nll)), nll

    arguments = (hidden, head, weights)
    found, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(*arguments)
        for f in (at_once, in_two)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    value, nll = jax.jit(at_once)(*arguments)  # Without a gradient.
    np.testing.assert_allclose(value, expected[0][0], rtol=1e-5)
    np.testing.assert_allclose(nll, expected[0][1], atol=1e-5)


def test_of_a_frozen_head_no_gradient_is_made():
    hidden, head, targets, supervised = example()

    def total(hidden, head):
        return losses.weighted_token_losses(
            hidden, targets, supervised, jnp.ones((B, U)), lambda h: h @ head, 32
        )[0]

    both = costs.flops(jax.make_jaxpr(jax.grad(total, (0, 1)))(hidden, head))
    one = costs.flops(jax.make_jaxpr(jax.jit(jax.grad(total)))(hidden, head))
    product = 2 * B * 32 * D * V
    assert (both, one) == (3 * product, 2 * product)
