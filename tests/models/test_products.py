"""Products in bfloat16: what they compute, and where their sums are float32."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpod_jax.models import products
from kpod_jax.training import costs
from tests.models import tiny

# Shapes of x and of the kernel, and the kernel's dimensions that are summed over.
CASES = [
    ((2, 5, 6), (6, 7), (0,)),
    ((2, 5, 6), (7, 6), (1,)),
    ((3, 6), (6, 2, 4), (0,)),
    ((3, 5, 2, 4), (2, 4, 6), (0, 1)),
]


def arrays(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(("x", "kernel", "inputs"), CASES)
def test_products_and_their_gradients_are_those_of_float32_factors(x, kernel, inputs, dtype):
    x, kernel = arrays(x, kernel)
    # What bfloat16 holds exactly, so that sums alone could differ.
    x, kernel = (v.astype(jnp.bfloat16).astype(jnp.float32) for v in (x, kernel))
    over = tuple(range(x.ndim - len(inputs), x.ndim)), inputs

    def ours(x, kernel):
        return products.float32_sums(x, kernel, inputs, dtype)

    expected, pull = jax.vjp(lambda x, kernel: jnp.tensordot(x, kernel, over), x, kernel)
    found = jax.jit(ours)(x, kernel)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    (slope,) = arrays(expected.shape)
    slope = slope.astype(jnp.bfloat16).astype(jnp.float32)
    # As one program: the compiler, too, has a say in how matrices lie.
    ours_pulled = jax.jit(lambda x, kernel, slope: jax.vjp(ours, x, kernel)[1](slope))
    for one, other in zip(ours_pulled(x, kernel, slope), pull(slope), strict=True):
        assert one.dtype == other.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_what_has_no_gradient_costs_nothing(number):
    """As a frozen kernel beside adapters, or the embeddings that a first layer reads."""
    x, kernel = arrays((4, 6), (6, 7))

    def total(x, kernel):
        return products.float32_sums(x, kernel, (0,), jnp.bfloat16).sum()

    one = jax.make_jaxpr(jax.grad(total, number))(x, kernel)
    both = jax.make_jaxpr(jax.grad(total, (0, 1)))(x, kernel)
    product = 2 * 4 * 6 * 7
    assert (costs.flops(one), costs.flops(both)) == (2 * product, 3 * product)
    found = jax.grad(total, number)(x, kernel)
    np.testing.assert_array_equal(found, jax.grad(total, (0, 1))(x, kernel)[number])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(("x", "kernel", "inputs"), [c for c in CASES if c[2][0] == 0])
def test_projections_are_of_the_type_that_is_asked_for(x, kernel, inputs, dtype):
    x, kernel = arrays(x, kernel)

    @jax.jit
    def both(x, kernel):
        result, pull = jax.vjp(
            lambda x, kernel: products.project(x, kernel, len(inputs), dtype), x, kernel
        )
        return result, *pull(jnp.ones_like(result))

    result, by_x, by_kernel = both(x, kernel)
    assert result.dtype == dtype and by_x.dtype == by_kernel.dtype == jnp.float32
    expected, pull = jax.vjp(lambda x, kernel: jnp.tensordot(x, kernel, len(inputs)), x, kernel)
    step = 2e-2 if dtype == jnp.bfloat16 else 1e-6
    for one, other in zip(
        (result, by_x, by_kernel), (expected, *pull(jnp.ones_like(expected))), strict=True
    ):
        bound = step * float(jnp.abs(other).max())
        np.testing.assert_allclose(np.float32(one), other, atol=bound)


def test_a_kernel_of_heads_is_never_turned_on_a_cpu():
    """Neither for the backward pass's product, nor for an optimiser that reads its gradient."""
    x, kernel = arrays((96, 64), (64, 4, 32))

    def turned(product):
        def step(x, kernel):
            result, pull = jax.vjp(lambda x, kernel: jnp.tanh(product(x, kernel)), x, kernel)
            by_x, by_kernel = pull(result)
            return by_x, kernel - 0.1 * by_kernel

        text = jax.jit(step).lower(x, kernel).compile().as_text()
        assert text is not None
        sizes = [
            math.prod(map(int, found[1].split(",")))
            for line in text.splitlines()
            if (found := re.search(r"= f32\[([\d,]+)\]\S* (?:transpose|copy)\(", line))
        ]
        return sizes.count(kernel.size)

    assert turned(lambda x, kernel: products.project(x, kernel, 1, jnp.float32)) == 0
    assert turned(lambda x, kernel: jnp.tensordot(x, kernel, 1)) > 0  # Else it need not be so.


@pytest.mark.parametrize(
    ("kind", "platform", "sums"), [("cpu", "cpu", "float32"), ("TPU v5 lite", "tpu", "bfloat16")]
)
def test_sums_are_float32_where_that_is_fast(kind, platform, sums):
    """It goes by the devices that a step is made for, which need not be here."""
    x, kernel = arrays((4, 6), (6, 7))
    with jax.sharding.use_abstract_mesh(tiny.mesh_of(kind, platform)):
        traced = jax.make_jaxpr(lambda x, kernel: products.project(x, kernel, 1, jnp.bfloat16))(
            x, kernel
        )
    assert f"preferred_element_type={sums}" in str(traced)
    assert traced.out_avals[0].dtype == jnp.bfloat16
