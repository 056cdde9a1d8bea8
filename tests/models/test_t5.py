"""T5 against transformers, and against itself in its other forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from kpod_jax.models import layout
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.relative_positions import relative_bias
from kpod_jax.models.t5 import T5
from tests.models import tiny


@pytest.fixture(scope="module", params=tiny.KINDS)
def reference(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference")
    return directory, tiny.torch_t5(directory, request.param)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_logits_are_those_of_transformers(reference, scan_layers):
    directory, model = reference
    module, params = tiny.load(directory, scan_layers=scan_layers)
    arrays = tiny.batch()
    expected = tiny.torch_logits(model, arrays)
    assert expected.std() > 0.5
    np.testing.assert_allclose(tiny.logits(module, params, arrays), expected, atol=1e-4)


def test_gradients_are_those_of_transformers(tmp_path):
    """Of the relative bias, which layers share, and of the embedding table, which three use."""
    model = tiny.torch_t5(tmp_path, "v1.0")
    module, params = tiny.load(tmp_path)
    arrays = tiny.batch(target=12)
    targets = np.random.default_rng(1).integers(2, 96, (4, 12))
    model(
        input_ids=torch.tensor(arrays["input_ids"]).long(),
        attention_mask=torch.tensor(arrays["input_mask"]).long(),
        decoder_input_ids=torch.tensor(arrays["decoder_input_ids"]).long(),
        labels=torch.tensor(targets),
    ).loss.backward()

    def loss(params):
        variables = {"params": params}
        hidden = module.apply(variables, *arrays.values())
        scores = jnp.asarray(module.apply(variables, hidden, method="logits"))
        scores = jax.nn.log_softmax(scores)
        return -jnp.take_along_axis(scores, targets[..., None], -1).mean()

    grads = jax.jit(jax.grad(loss))(params)
    for ours, theirs in (
        (grads["shared"]["embedding"], model.shared.weight),
        (
            grads["decoder"]["relative_bias"],
            model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight,
        ),
        (
            grads["decoder"]["layers"]["mlp"]["wo"]["kernel"][1].T,
            model.decoder.block[1].layer[2].DenseReluDense.wo.weight,
        ),
    ):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), atol=1e-5)


def test_padding_of_the_question_changes_nothing():
    module = T5(tiny.config("v1.1"))
    params, arrays = tiny.init(module), tiny.batch(rows=2)
    short = {k: v[1:] for k, v in arrays.items()}
    length = int(short["input_mask"].sum())
    cut = short | {k: short[k][:, :length] for k in ("input_ids", "input_mask")}
    np.testing.assert_allclose(
        tiny.logits(module, params, short), tiny.logits(module, params, cut), atol=1e-5
    )


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_bias_is_that_of_transformers(bidirectional):
    """Every pair of 300 positions, beyond the largest distance, and unequal lengths."""
    table = jnp.asarray(np.random.default_rng(0).normal(size=(32, 3)))
    for queries, keys in ((300, 300), (5, 9), (9, 5)):
        distance = torch.arange(keys)[None] - torch.arange(queries)[:, None]
        buckets = T5Attention._relative_position_bucket(distance, bidirectional, 32, 128).numpy()
        bias = relative_bias(table, queries, keys, bidirectional=bidirectional, max_distance=128)
        np.testing.assert_array_equal(bias, np.asarray(table)[buckets].transpose(2, 0, 1)[None])


def test_embeddings_may_be_given_in_place_of_ids():
    module = T5(tiny.config("v1.1"))
    variables, arrays = {"params": tiny.init(module)}, tiny.batch()
    ids, mask = arrays["input_ids"], arrays["input_mask"]
    embeddings = module.apply(variables, ids, method="embed")
    given = module.apply(variables, None, mask, embeddings_BxSxD=embeddings, method="encode")
    np.testing.assert_array_equal(given, module.apply(variables, ids, mask, method="encode"))
    with pytest.raises(TypeError, match="Expected exactly one"):
        module.apply(variables, ids, mask, embeddings_BxSxD=embeddings, method="encode")


@pytest.mark.parametrize(("scan_layers", "remat"), [(True, "dots"), (False, "full")])
def test_remat_changes_no_gradient_even_with_dropout(scan_layers, remat):
    config = tiny.config("v1.1", dropout_rate=0.2, num_decoder_layers=1)
    params = tiny.init(T5(config, scan_layers=scan_layers))
    arrays = tiny.batch(rows=2, source=6, target=5)

    def gradient(remat):
        module = T5(config, scan_layers=scan_layers, remat=remat)

        def loss(params):
            hidden = module.apply(
                {"params": params},
                *arrays.values(),
                deterministic=False,
                rngs={"dropout": jax.random.key(3, impl="rbg")},
            )
            return jnp.square(jnp.asarray(hidden)[..., 0]).sum()

        return layout.flatten(jax.jit(jax.grad(loss))(params))

    expected, found = gradient("none"), gradient(remat)
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-4, atol=1e-6, err_msg=path)


def test_dropout_follows_its_key_and_is_off_by_default():
    module = T5(tiny.config("v1.0", dropout_rate=0.5, num_decoder_layers=1))
    params, arrays = tiny.init(module), tiny.batch(rows=2, source=6, target=5)

    @jax.jit
    def dropped(key):
        rngs = {"dropout": key}
        variables = {"params": params}
        return module.apply(variables, *arrays.values(), deterministic=False, rngs=rngs)

    def run(seed):
        return np.asarray(dropped(jax.random.key(seed, impl="rbg")))

    plain = np.asarray(module.apply({"params": params}, *arrays.values()))
    np.testing.assert_array_equal(run(0), run(0))
    assert np.abs(run(0) - run(1)).mean() > 0.1 * np.abs(plain).mean()
    assert np.isfinite(run(0)).all()


def test_bfloat16_stays_near_float32():
    config = tiny.config("v1.1")
    params, arrays = tiny.init(T5(config)), tiny.batch()
    exact = tiny.logits(T5(config), params, arrays)
    rough = tiny.logits(T5(config, dtype=jnp.bfloat16), params, arrays)
    assert rough.dtype == np.float32
    assert (rough - exact).std() < 0.1 * exact.std()


@pytest.mark.parametrize("scan_layers", [True, False])
def test_lora_starts_as_the_base_and_then_adds_its_product(scan_layers):
    config, arrays = tiny.config("v1.1"), tiny.batch()
    lora = LoRAConfig(rank=3, alpha=6.0, targets=("q", "o", "wi_1"))
    module = T5(config, scan_layers=scan_layers, lora=lora)
    ids = arrays["input_ids"]
    born = jax.jit(module.init)(jax.random.key(0, impl="rbg"), ids, ids > 0, ids)
    flat = layout.flatten(nn.unbox(born["params"]))
    adapters = {path for path in flat if layout.is_adapter(path)}
    assert {path.split("/")[-2] for path in adapters} == {"q", "o", "wi_1"}
    base = T5(config, scan_layers=scan_layers)
    plain = layout.unflatten({path: flat[path] for path in flat.keys() - adapters})
    expected = tiny.logits(base, plain, arrays)
    np.testing.assert_array_equal(tiny.logits(module, layout.unflatten(flat), arrays), expected)
    rng = np.random.default_rng(0)
    for path in adapters:
        flat[path] = rng.normal(size=flat[path].shape, scale=0.1).astype(np.float32)
    changed = tiny.logits(module, layout.unflatten(flat), arrays)
    assert np.abs(changed - expected).max() > 0.1


def test_stacked_and_written_out_layers_are_the_same_parameters():
    config, arrays = tiny.config("v1.0"), tiny.batch()
    stacked = tiny.init(T5(config))
    unrolled = layout.unroll(stacked)
    np.testing.assert_allclose(
        tiny.logits(T5(config, scan_layers=False), unrolled, arrays),
        tiny.logits(T5(config), stacked, arrays),
        atol=1e-5,
    )
    second = unrolled["decoder"]["layers_1"]["self_attention"]["q"]["kernel"]
    kernels = stacked["decoder"]["layers"]["self_attention"]["q"]["kernel"]
    np.testing.assert_array_equal(second, kernels[1])
