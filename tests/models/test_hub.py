"""Directories of Hugging Face's format, in and out, and what is said of those that do not fit."""

import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import transformers

from kpod_jax.models import hub, layout
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.t5 import T5
from kpod_jax.models.t5_config import NAMED, T5Config
from kpod_jax.utils.errors import UserError
from tests.models import tiny


def assert_equal_trees(found, expected):
    found, expected = layout.flatten(found), layout.flatten(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


def reload(directory, module):
    return tiny.load(
        directory, scan_layers=module.scan_layers, dtype=module.dtype, lora=module.lora
    )[1]


@pytest.fixture
def saved(tmp_path):
    """A directory that was written by `save_pretrained`, and what was saved."""
    module = T5(tiny.config("v1.1"))
    params = tiny.init(module)
    hub.save_pretrained(tmp_path / "model", module.config, params)
    return tmp_path / "model", module, params


def edit_config(directory, **values):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(directory, change):
    tensors = safetensors.numpy.load_file(directory / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_transformers_computes_the_same_from_an_export(tmp_path, kind):
    module = T5(tiny.config(kind))
    params, arrays = tiny.init(module), tiny.batch()
    hub.save_pretrained(tmp_path, module.config, params)
    loaded: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    model, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected = tiny.torch_logits(model.eval(), arrays)
    np.testing.assert_allclose(tiny.logits(module, params, arrays), expected, atol=1e-4)


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_export_and_import_keep_every_bit(tmp_path, kind, scan_layers):
    module = T5(tiny.config(kind), scan_layers=scan_layers)
    params = tiny.init(module)
    hub.save_pretrained(tmp_path, module.config, params)
    assert hub.load_config(str(tmp_path)) == module.config
    assert_equal_trees(reload(tmp_path, module), params)


def test_an_export_in_bfloat16_is_rounded_once(saved, tmp_path):
    _, module, params = saved
    hub.save_pretrained(tmp_path / "half", module.config, params, dtype="bfloat16")
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    assert_equal_trees(reload(tmp_path / "half", module), rounded)
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "half")
    assert str(model.dtype) == "torch.bfloat16"


def test_large_exports_are_split_and_leave_no_older_weights(saved):
    directory, module, params = saved
    hub.save_pretrained(directory, module.config, params, shard_bytes=20_000)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert not (directory / "model.safetensors").exists()
    assert_equal_trees(reload(directory, module), params)
    model = transformers.T5ForConditionalGeneration.from_pretrained(directory)
    np.testing.assert_array_equal(
        model.get_input_embeddings().weight.detach(), params["shared"]["embedding"]
    )
    hub.save_pretrained(directory, module.config, tiny.init(module, 1))
    assert_equal_trees(reload(directory, module), tiny.init(module, 1))


def test_adapters_are_merged_into_an_export(tmp_path):
    lora = LoRAConfig(rank=3, alpha=6.0, targets=("q", "o", "wi_0"))
    module = T5(tiny.config("v1.1"), lora=lora)
    params, arrays = tiny.init(module), tiny.batch()
    with pytest.raises(TypeError, match="LoRAConfig"):
        hub.save_pretrained(tmp_path, module.config, params)
    hub.save_pretrained(tmp_path, module.config, params, lora=lora)
    merged = tiny.logits(*tiny.load(tmp_path), arrays)
    adapted = tiny.logits(module, params, arrays)
    np.testing.assert_allclose(merged, adapted, atol=1e-3 * np.abs(adapted).max())


def test_a_head_that_transformers_left_out_is_the_embedding_table(tmp_path):
    """transformers 5 ties the head of a new v1.1, and yet does not scale what it is given."""
    config = transformers.T5Config.from_dict(tiny.SIZES | tiny.KINDS["v1.1"])
    model = transformers.T5ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    module, params = tiny.load(tmp_path)
    arrays = tiny.batch()
    expected = tiny.torch_logits(model, arrays)
    np.testing.assert_allclose(
        tiny.logits(module, params, arrays), expected, atol=1e-5 * np.abs(expected).max()
    )


def test_repeated_and_unused_weights_of_older_files_are_accepted(tmp_path):
    module = T5(tiny.config("v1.0"))
    params = tiny.init(module)
    hub.save_pretrained(tmp_path, module.config, params)

    def add(tensors):
        for name in ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens"):
            tensors[f"{name}.weight"] = tensors["shared.weight"].copy()
        unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        tensors[unused] = np.zeros((32, 4), np.float32)

    edit_weights(tmp_path, add)
    assert_equal_trees(reload(tmp_path, module), params)

    def differ(tensors):
        tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1

    edit_weights(tmp_path, differ)
    with pytest.raises(UserError, match=r"lm_head\.weight differs.*tie_word_embeddings"):
        tiny.load(tmp_path)


def test_a_wrong_shape_names_weight_shapes_and_key(saved):
    directory, _, _ = saved
    edit_config(directory, d_ff=64)
    with pytest.raises(UserError) as error:
        tiny.load(directory)
    for part in ("DenseReluDense.wi_0.weight", "[48, 32]", "[64, 32]", "d_ff=64", str(directory)):
        assert part in str(error.value)
    assert "d_model" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_layers": 2}, r"lacks the weight encoder\.block\.1\..* more, .*num_layers"),
        ({"num_decoder_layers": 1}, r"has the weight decoder\.block\.1\..*num_decoder_layers"),
        ({"feed_forward_proj": "relu"}, r"lacks .*DenseReluDense\.wi\.weight.*feed_forward_proj"),
    ],
)
def test_missing_and_unexpected_weights_are_named(saved, values, said):
    directory, _, _ = saved
    edit_config(directory, **values)
    with pytest.raises(UserError, match=said):
        tiny.load(directory)


def test_a_directory_without_weights_says_what_to_do(saved):
    directory, _, _ = saved
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights.*student\.init=random"):
        hub.check_weights(str(directory))
    (directory / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle.*safetensors"):
        hub.check_weights(str(directory))


def test_a_cut_off_file_is_named(saved):
    directory, _, _ = saved
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"Cannot read .*model\.safetensors.*again"):
        tiny.load(directory)


def test_an_index_reads_no_file_outside_of_its_directory(saved, tmp_path):
    directory, module, params = saved
    hub.save_pretrained(directory, module.config, params, shard_bytes=20_000)
    index = directory / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    name, file = next(iter(value["weight_map"].items()))
    shutil.move(directory / file, tmp_path / file)
    value["weight_map"][name] = f"../{file}"
    index.write_text(json.dumps(value))
    with pytest.raises(UserError, match="Cannot read"):
        tiny.load(directory)


def test_other_families_are_refused_by_name(saved):
    directory, _, _ = saved
    edit_config(directory, model_type="bert")
    with pytest.raises(UserError, match=r"'bert' .*is not supported.*t5, llama, mistral"):
        hub.load_config(str(directory))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"feed_forward_proj": "swiglu"}, "feed_forward_proj is 'swiglu'.*gated-gelu"),
        ({"num_heads": 0}, "num_heads is 0; expected an integer >= 1"),
        ({"d_model": "512"}, "d_model is '512'"),
        ({"eos_token_id": [1, 2]}, r"eos_token_id is \[1, 2\]"),
        ({"dropout_rate": 1.5}, "dropout_rate is 1.5"),
    ],
)
def test_values_that_cannot_be_are_named_with_their_file(saved, values, said):
    directory, _, _ = saved
    edit_config(directory, **values)
    with pytest.raises(UserError, match=said) as error:
        hub.load_config(str(directory))
    assert str(directory / "config.json") in str(error.value)


def test_configurations_by_name_are_those_of_the_hub(shared_data):
    for size in ("base", "large", "xl"):
        path = shared_data / f"student_configs/flan_t5_{size}.json"
        assert hub.load_config(str(path)) == NAMED[f"google/flan-t5-{size}"]
    assert hub.load_config("t5-small") == T5Config()
    assert T5Config.from_json(NAMED["t5-large"].to_json()) == NAMED["t5-large"]
