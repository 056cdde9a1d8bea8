"""Counts of operations and collectives, against small cases counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kpod_jax.parallel import sharding
from kpod_jax.training import costs

# A sum of 24 bytes and a gathering of 8 to 32 in a loop of 12, and in a branch, once, a sum of 8.
TEXT = """HloModule jit_step, entry_computation_layout={(f32[2,3]{1,0})->f32[2,3]{1,0}}

%body.1 (p.1: (s32[], f32[2,3])) -> (s32[], f32[2,3]) {
  %p.1 = (s32[]{:T(128)}, f32[2,3]{1,0:T(8,128)}) parameter(0)
  %x = f32[2,3]{1,0:T(8,128)} get-tuple-element(%p.1), index=1
  %sum = f32[2,3]{1,0:T(8,128)S(1)} all-reduce(%x), channel_id=1, to_apply=%add, metadata={a="b"}
  %part = bf16[4]{0} fusion(%sum), kind=kLoop, calls=%cast
  %begun = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%part), channel_id=2, dimensions={0}
  %all = bf16[16]{0} all-gather-done(%begun)
  ROOT %t = (s32[]{:T(128)}, f32[2,3]{1,0:T(8,128)}) tuple(%i, %sum)
}

%cond.1 (p.2: (s32[], f32[2,3])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%yes (p.3: f32[2]) -> f32[2] {
  %p.3 = f32[2]{0} parameter(0)
  ROOT %r = f32[2]{0} all-reduce(%p.3), channel_id=3, to_apply=%add
}

%no (p.4: f32[2]) -> f32[2] {
  ROOT %p.4 = f32[2]{0} parameter(0)
}

ENTRY %main (a: f32[2,3]) -> f32[2,3] {
  %loop = (s32[], /*index=1*/f32[2,3]) while(%t0), condition=%cond.1, body=%body.1, metadata={c="d"}
  %choice = f32[2]{0} conditional(%p, %l, %r), branch_computations={%yes, %no}
  ROOT %out = f32[2,3]{1,0} get-tuple-element(%loop), index=1
}
"""


def flops(function, *shapes, **options):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return costs.flops(jax.jit(function).trace(*arguments).jaxpr, **options)


def test_products_are_counted_with_their_batches():
    assert flops(lambda x, y: x @ y, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
    assert flops(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), (7, 3, 4), (7, 4, 5)) == 7 * 120
    # Backwards there is one for each factor.
    both = jax.value_and_grad(lambda x, y: (x @ y).sum(), (0, 1))
    assert flops(both, (3, 4), (4, 5)) == 3 * 120


def test_loops_are_multiplied_out_and_of_branches_the_costliest_counts():
    def scanned(x, ys):
        return jax.lax.scan(lambda x, y: (x @ y, None), x, ys)[0]

    assert flops(scanned, (3, 4), (7, 4, 4)) == 7 * 2 * 3 * 4 * 4
    assert flops(scanned, (3, 4), (7, 4, 4), once=True) == 2 * 3 * 4 * 4

    def branched(x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops(branched, (3, 3)) == 2 * 2 * 27


def test_what_is_computed_anew_counts_again():
    def loss(x, y):
        return jnp.sin(jnp.sin(x @ y) @ y).sum()

    plain = flops(jax.grad(loss), (3, 4), (4, 4))
    again = flops(jax.grad(jax.checkpoint(loss)), (3, 4), (4, 4))
    assert (plain, again) == (4 * 96, 6 * 96)


def test_collectives_of_loops_count_as_often_as_they_run():
    assert costs.collectives(TEXT) == {
        "all-reduce": costs.Collective(13, 12 * 24 + 8),
        "all-gather": costs.Collective(12, 12 * 32),
    }
    assert costs.sent_bytes(costs.collectives(TEXT)) == 2 * (12 * 24 + 8) + 12 * 32


def test_collectives_of_a_compiled_program():
    mesh = sharding.make_mesh()
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((16, 5), jnp.float32, sharding=rows)

    def sums(x):
        def add(total, _):
            return total + (x + total).sum(0), None

        return jax.lax.scan(add, jnp.zeros(5), None, length=3)[0]

    whole = sharding.replicated(mesh)
    text = jax.jit(sums, out_shardings=whole).lower(x).compile().as_text() or ""
    found = costs.collectives(text)
    assert found == {"all-reduce": costs.Collective(3, 3 * 5 * 4)}


def test_a_program_without_collectives_sends_nothing():
    text = jax.jit(jnp.sin).lower(jnp.ones(3)).compile().as_text() or ""
    assert costs.collectives(text) == {}
    assert costs.sent_bytes({}) == pytest.approx(0)
