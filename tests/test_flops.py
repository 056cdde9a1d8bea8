"""FLOPs by the trace, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from kpod_jax.flops import matmul_flops


def of(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_product_and_its_gradient():
    a, b = of(3, 5), of(5, 7)
    assert matmul_flops(jnp.matmul, a, b) == 2 * 3 * 5 * 7

    def loss(a, b):
        return (a @ b).sum()

    # The value, and one product for each of the two gradients; then for one of them.
    assert matmul_flops(jax.value_and_grad(loss, (0, 1)), a, b) == 3 * 2 * 3 * 5 * 7
    assert matmul_flops(jax.value_and_grad(loss), a, b) == 2 * 2 * 3 * 5 * 7


def test_batches_and_several_contracted_dimensions():
    found = matmul_flops(
        lambda a, b: jnp.einsum("bthd,bshd->bhts", a, b), of(2, 4, 3, 8), of(2, 6, 3, 8)
    )
    assert found == 2 * (2 * 3 * 4 * 6) * 8
    found = matmul_flops(lambda a, b: jnp.einsum("bhd,hdo->bo", a, b), of(2, 3, 8), of(3, 8, 5))
    assert found == 2 * (2 * 5) * 24


def test_loops_branches_and_what_is_compiled_apart():
    a = of(4, 4)
    one = 2 * 4**3

    def scanned(a):
        return jax.lax.scan(lambda x, _: (x @ a, None), a, length=6)[0]

    assert matmul_flops(scanned, a) == 6 * one
    assert matmul_flops(jax.jit(scanned), a) == 6 * one
    assert matmul_flops(jax.checkpoint(lambda a: a @ a), a) == one

    def branches(a, flag):
        return jax.lax.cond(flag, lambda a: a @ a @ a, lambda a: a, a)

    assert matmul_flops(branches, a, jax.ShapeDtypeStruct((), bool)) == 2 * one


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_student_counts_as_its_compiled_step(remat):
    """The compiler's own count has element-wise work in it, and no less than ours."""
    from kpod_jax.models.t5 import T5, T5Config

    config = T5Config.from_json(
        {"model_type": "t5", "vocab_size": 512, "d_model": 64, "d_kv": 16, "d_ff": 256}
        | {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    )
    module = T5(config, scan_layers=False, remat=remat)
    ids = jnp.ones((4, 32), jnp.int32)
    import flax.linen as nn

    params = nn.unbox(module.init(jax.random.key(0), ids, ids > 0, ids)["params"])

    def loss(params):
        hidden = module.apply({"params": params}, ids, ids > 0, ids)
        return module.apply({"params": params}, hidden, method="logits").sum()

    ours = matmul_flops(loss, params)
    compiled = jax.jit(loss).lower(params).compile().cost_analysis()["flops"]
    assert 0.8 * compiled < ours <= compiled
