"""Attention by blocks against attention at once: values, gradients, memory, where it is used."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpod_jax.models import block_attention, layers
from kpod_jax.models.llama import Llama
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.models.t5 import T5
from kpod_jax.models.t5_config import T5Config
from kpod_jax.parallel import sharding
from kpod_jax.training.forward import target_losses
from tests.models import tiny

# B, Q, K, N, M: lengths that blocks do not divide, shared keys, fewer queries than one block has.
SHAPES = [(2, 150, 150, 4, 2), (3, 300, 300, 2, 2), (2, 70, 130, 4, 1), (2, 20, 33, 3, 3)]
_T5 = T5Config(
    vocab_size=64,
    d_model=32,
    d_kv=8,
    d_ff=48,
    num_heads=4,
    num_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.0,
)
_LLAMA = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)


def arrays(shape: tuple[int, ...], dtype: Any = jnp.float32) -> dict[str, Any]:
    """Random ones, a bias and a mask among them; every query sees its own place."""
    rows, queries, keys, heads, shared = shape
    rng, width = np.random.default_rng(0), 8

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), dtype)

    mask = rng.random((rows, 1, queries, keys)) < 0.6
    mask |= np.eye(queries, keys, keys - queries, dtype=bool)
    return {
        "query": normal(rows, queries, heads, width),
        "key": normal(rows, keys, shared, width),
        "value": normal(rows, keys, shared, width),
        "bias": normal(1, heads, queries, keys).astype(jnp.float32),
        "mask": jnp.asarray(mask),
        "slope": normal(rows, queries, heads, width),
    }


def at_once(*arrays: Any, **how: Any) -> jax.Array:
    return layers.Attention(**how)(*arrays)


def found(attend: Any, given: dict[str, Any], bias: bool, mask: Any, **how: Any) -> list[Any]:
    """The result and the gradients by query, key, value and bias."""
    names = ["query", "key", "value"] + ["bias"] * bias

    def run(*values: jax.Array) -> jax.Array:
        rest = () if bias else (None,)
        return attend(*values, *rest, mask, scale=0.3, **how)

    result, pull = jax.vjp(run, *(given[name] for name in names))
    return [result, *pull(given["slope"])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_attention_at_once(shape, is_causal, bias):
    given = arrays(shape)
    _, queries, keys, _, _ = shape
    seen = jnp.tril(jnp.ones((queries, keys), bool), keys - queries)
    mask = given["mask"] & seen if is_causal else given["mask"]
    expected = found(at_once, given, bias, mask)
    for given_mask in [mask, given["mask"]] if is_causal else [mask]:
        blocks = found(block_attention.attend, given, bias, given_mask, is_causal=is_causal)
        for a, b in zip(blocks, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_bfloat16_is_rounded_where_attention_at_once_rounds():
    given = arrays(SHAPES[0], jnp.bfloat16)
    found_all = [
        found(attend, given, False, given["mask"]) for attend in (block_attention.attend, at_once)
    ]
    for a, b in zip(*found_all, strict=True):
        assert a.dtype == b.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=0.05, atol=0.03)


def test_a_key_that_nothing_sees_and_a_query_that_sees_nothing_have_no_gradient():
    given = arrays(SHAPES[0])
    mask = given["mask"].at[:, :, :, 3].set(False).at[:, :, 5].set(False)
    result, by_query, by_key, by_value = found(block_attention.attend, given, False, mask)
    assert np.isfinite(result).all()
    assert not np.any(by_query[:, 5]) and np.any(by_query[:, 6])
    assert not np.any(by_key[:, 3]) and np.any(by_key[:, 4])
    assert np.any(by_value[:, 4])


def test_without_mask_and_bias_everything_is_seen():
    given = arrays(SHAPES[2])
    for a, b in zip(
        found(block_attention.attend, given, False, None),
        found(at_once, given, False, None),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def gradient_of(implementation: str, drop: Any = None) -> Any:
    """The jitted gradient of attention's sum by [8, length, 2, 8] arrays."""

    def total(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        attend = layers.Attention(implementation, is_causal=True)
        return attend(query, key, value, None, None, drop).sum()

    return jax.jit(jax.grad(total, (0, 1, 2)))


def of_length(length: int) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct((8, length, 2, 8), jnp.float32)] * 3


def test_scores_are_never_held_whole():
    def temporary(implementation: str, length: int) -> int:
        with sharding.use(tiny.one_device()):
            step = gradient_of(implementation).lower(*of_length(length)).compile()
        return step.memory_analysis().temp_size_in_bytes

    length = 512
    scores = 4 * 8 * 2 * length**2
    assert temporary("xla", length) > scores
    assert temporary("blocks", length) < scores / 4
    # Twice the length: blocks of four times the size, of as many heads and examples.
    assert temporary("blocks", 2 * length) < scores


@pytest.mark.parametrize("why", ["short", "many devices", "dropout", "a TPU", "none of these"])
def test_what_it_is_not_for_is_left_to_xla(why):
    length = block_attention.MIN_LENGTH - (why == "short")
    mesh: Any = sharding.make_mesh() if why == "many devices" else tiny.one_device()
    drop = (lambda weights: 2 * weights) if why == "dropout" else None
    if why == "a TPU":
        mesh = tiny.mesh_of("TPU v5 lite", "tpu")
    with jax.sharding.use_abstract_mesh(getattr(mesh, "abstract_mesh", mesh)):
        blocks, xla = (
            str(gradient_of(name, drop).trace(*of_length(length)).jaxpr)
            for name in ("blocks", "xla")
        )
    assert (blocks == xla) is (why != "none of these")


def gradients(module: Any, batch: dict[str, Any]) -> Any:
    """Losses of the targets and their sum's gradients."""
    params = tiny.init(module)

    def total(params: Any) -> Any:
        losses = target_losses(module, params, batch)
        return losses.sum(), losses

    with sharding.use(tiny.one_device()):
        return jax.jit(jax.grad(total, has_aux=True))(params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("remat", "scan_layers"), [("none", True), ("dots", False), ("full", True)]
)
def test_students_learn_the_same(remat, scan_layers):
    length, rng = block_attention.MIN_LENGTH + 4, np.random.default_rng(0)
    ids = rng.integers(2, 64, (2, length)).astype(np.int32)
    batch: dict[str, Any] = {
        "input_ids": ids,
        "input_mask": np.arange(length) < np.array([[length], [length - 30]]),
        "decoder_input_ids": np.roll(ids, 1, axis=1),
        "targets": ids,
        "supervised": np.ones((2, length), bool),
    }
    for kind, config in ((T5, _T5), (Llama, _LLAMA)):
        module = functools.partial(kind, config, remat=remat, scan_layers=scan_layers)
        found_all = [gradients(module(attention=name), batch) for name in ("blocks", "xla")]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), *found_all
        )


def test_packed_texts_do_not_see_each_other():
    rng, length = np.random.default_rng(0), block_attention.MIN_LENGTH
    ids = rng.integers(2, 64, (1, length)).astype(np.int32)
    segments = np.repeat([1, 2], [100, length - 100])[None]
    module: Any = Llama(_LLAMA, attention="blocks")
    none = np.zeros((1, 0), np.int32)
    params = tiny.init(module)

    @jax.jit
    def run(ids: np.ndarray) -> jax.Array:
        arguments = (none, none > 0, ids)
        return module.apply({"params": params}, *arguments, segments_BxU=segments)

    changed = ids.copy()
    changed[:, :100] = rng.integers(2, 64, (1, 100))
    before, after = run(ids), run(changed)
    np.testing.assert_array_equal(before[:, 100:], after[:, 100:])
    assert np.abs(before[:, :100] - after[:, :100]).max() > 0.1
