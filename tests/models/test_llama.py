"""The LLaMA family against transformers, and against itself in its other forms."""

import copy
import functools
import json
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
import transformers

from kpod_jax.models import hub, layout
from kpod_jax.models.families import config_from_json
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.llama import Llama
from kpod_jax.models.llama_config import LlamaConfig, RopeScaling
from kpod_jax.utils.errors import UserError
from tests.models import tiny

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,  # Heads do not add up to the width.
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 100.0,
        "short_factor": [1.0, 1.1, 1.5],
        "long_factor": [1.0, 2.0, 4.0],
    },
}
# What transformers calls them, and what is special about each.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied-bias": ("Llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"tie_word_embeddings": True}),
    "qwen3-windows": (
        "Qwen3",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "olmo2": ("Olmo2", {"head_dim": 8}),  # Theirs is the quotient.
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1], "num_hidden_layers": 3}),
    "smollm3-windows": (
        "SmolLM3",
        {"no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 8},
    ),
    "phi3": ("Phi3", {"head_dim": 8, "sliding_window": 8, "attention_bias": False}),
    "phi4-mini": ("Phi3", {"head_dim": 8, "partial_rotary_factor": 0.75, **LONGROPE}),
    "gemma3": (
        "Gemma3Text",
        {
            "num_hidden_layers": 3,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 20,
        },
    ),
}


def torch_model(directory, kind: str) -> Any:
    """A random model of transformers, saved to `directory`."""
    torch.manual_seed(0)
    name, more = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**SIZES | copy.deepcopy(more))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).eval()
    for weight_name, weight in model.named_parameters():
        if "norm" in weight_name or weight_name.endswith("bias"):
            weight.data.add_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(directory)
    return model


def load(directory, **fields: Any) -> tuple[Llama, Any]:
    """Our module and its parameters."""
    config = hub.load_config(str(directory))
    assert isinstance(config, LlamaConfig)
    module = Llama(config, **fields)
    mesh = tiny.one_device()
    return module, hub.load_params(str(directory), tiny.abstract(module, mesh), config)


def batch(rows: int = 4, source: int = 24, target: int = 9) -> dict[str, np.ndarray]:
    """Random ids; questions are padded on the left, the first not at all."""
    rng = np.random.default_rng(0)
    lengths = np.append(source, rng.integers(3, source, rows - 1))
    mask = np.arange(source)[::-1] < lengths[:, None]
    return {
        "input_ids": np.where(mask, rng.integers(2, 96, (rows, source)), 0).astype(np.int32),
        "input_mask": mask,
        "decoder_input_ids": rng.integers(2, 96, (rows, target)).astype(np.int32),
    }


def torch_logits(model, arrays) -> np.ndarray:
    """[B, U, V] of each row alone and unpadded, as nothing can be padded wrongly then."""
    result = []
    for ids, mask, rest in zip(*arrays.values(), strict=True):
        row = torch.tensor(np.concatenate([ids[mask], rest])).long()[None]
        with torch.no_grad():
            result.append(model(row).logits[0, -len(rest) :].float().numpy())
    return np.stack(result)


@pytest.fixture(scope="module", params=KINDS)
def reference(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    return directory, torch_model(directory, request.param)


# Layers that are written out are those of decoding, which is tested below.
@pytest.mark.parametrize(
    ("reference", "scan_layers"),
    [*((kind, True) for kind in KINDS), ("mistral", False), ("gemma3", False)],
    indirect=["reference"],
)
def test_logits_are_those_of_transformers(reference, scan_layers):
    directory, model = reference
    module, params = load(directory, scan_layers=scan_layers)
    arrays = batch()
    expected = torch_logits(model, arrays)
    assert expected.std() > 0.5
    np.testing.assert_allclose(tiny.logits(module, params, arrays), expected, atol=1e-4)


@pytest.mark.parametrize("reference", ["llama3", "mistral"], indirect=True)
def test_where_padding_stands_and_how_a_prompt_is_split_changes_nothing(reference):
    directory, _ = reference
    module, params = load(directory)
    arrays = batch()
    expected = tiny.logits(module, params, arrays)
    left_mask = arrays["input_mask"][:, ::-1]
    right = arrays | {"input_mask": left_mask, "input_ids": np.zeros_like(arrays["input_ids"])}
    right["input_ids"][left_mask] = arrays["input_ids"][arrays["input_mask"]]
    np.testing.assert_allclose(tiny.logits(module, params, right), expected, atol=1e-5)

    @jax.jit
    def run(ids: Any, mask: Any, inputs: Any) -> Any:
        apply = functools.partial(module.apply, {"params": params})
        hidden = apply(apply(ids, mask, method="encode"), mask, inputs, method="decode")
        return apply(hidden, method="logits")

    found = run(right["input_ids"], left_mask, arrays["decoder_input_ids"])
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    "reference",
    ["llama-tied-bias", "mistral", "qwen3", "olmo2", "smollm3-windows", "phi4-mini", "gemma3"],
    indirect=True,
)
def test_decoding_step_by_step_gives_the_same_as_all_at_once(reference):
    directory, model = reference
    module, params = load(directory, scan_layers=False)
    arrays = batch()
    ids, mask, inputs = arrays.values()

    def run(method: str, *arguments: Any) -> Any:
        return module.apply({"params": params}, *arguments, method=method)

    @jax.jit
    def start(ids: Any, mask: Any) -> Any:
        return run("start_cache", run("encode", ids, mask), inputs.shape[1])

    @jax.jit
    def step(*arguments: Any) -> Any:
        hidden, cache = run("decode_step", *arguments)
        return run("logits", hidden), cache

    cache, found = start(ids, mask), []
    for position in range(inputs.shape[1]):
        ages = np.full(len(inputs), position)
        logits, cache = step(inputs[:, position], position, ages, mask, cache)
        found.append(logits)
    expected = torch_logits(model, arrays)
    np.testing.assert_allclose(np.stack(found, axis=1), expected, atol=1e-4)


def test_an_export_is_bit_equal_and_gives_the_same_in_transformers(reference, tmp_path):
    directory, model = reference
    module, params = load(directory)
    hub.save_pretrained(tmp_path, module.config, params)
    again, found = load(tmp_path)
    assert again.config == module.config
    for path, value in layout.flatten(params).items():
        np.testing.assert_array_equal(layout.flatten(found)[path], value, err_msg=path)
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    exported, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"]
    arrays = batch()
    np.testing.assert_allclose(
        torch_logits(exported.eval(), arrays), torch_logits(model, arrays), atol=1e-5
    )


@pytest.mark.parametrize("reference", ["smollm3", "phi4-mini", "gemma3"], indirect=True)
def test_every_prefix_is_continued_in_one_pass(reference):
    module, params = load(reference[0])
    rng = np.random.default_rng(0)
    ids, inputs = rng.integers(3, 96, (1, 20)), rng.integers(3, 96, (1, 4))
    prefixes = np.arange(20) < np.array([6, 13, 20])[None, :, None]

    @jax.jit
    def run(ids: Any, mask: Any, inputs: Any, prefixes: Any) -> Any:
        apply = functools.partial(module.apply, {"params": params})
        encoded = apply(ids, mask, method="encode")
        return apply(encoded, prefixes, inputs, method="decode_prefixes")

    found = run(ids, ids > 0, inputs, prefixes)[0]
    for hidden, length in zip(found, (6, 13, 20), strict=True):
        prompt = ids[:, :length]
        alone = jax.jit(functools.partial(module.apply, {"params": params}))
        np.testing.assert_allclose(hidden, alone(prompt, prompt > 0, inputs)[0], atol=1e-4)


@pytest.mark.parametrize("reference", ["phi4-mini", "olmo2", "gemma3"], indirect=True)
def test_adapters_and_recomputation_change_no_result(reference):
    directory, _ = reference
    module, params = load(directory)
    lora = LoRAConfig(rank=2, targets=("q", "v", "down"))
    adapted = Llama(module.config, lora=lora, remat="full")
    ids = np.ones((1, 4), np.int32)
    fresh = jax.jit(adapted.init)(jax.random.key(0), ids, ids > 0, ids)
    parts = layout.split_adapters(nn.unbox(fresh["params"]))[0]
    arrays, both = batch(), layout.combine(params, parts)
    np.testing.assert_allclose(
        tiny.logits(adapted, both, arrays), tiny.logits(module, params, arrays), atol=1e-5
    )
    # Merged, they are the weights of a model without.
    rng = np.random.default_rng(0)
    both = layout.unflatten(
        {
            path: rng.normal(size=leaf.shape).astype(np.float32) * 0.1
            if layout.is_adapter(path)
            else leaf
            for path, leaf in layout.flatten(both).items()
        }
    )
    merged = layout.merge(both, lora)
    np.testing.assert_allclose(
        tiny.logits(adapted, both, arrays), tiny.logits(module, merged, arrays), atol=1e-4
    )


@pytest.mark.parametrize("reference", ["phi4-mini"], indirect=True)
def test_sequences_beyond_the_original_context_are_refused(reference):
    module, params = load(reference[0])
    assert module.config.rope_scaling.max_length == 128
    with pytest.raises(UserError, match="A sequence of 130 tokens: longer ones than 128"):
        tiny.logits(module, params, batch(source=120, target=10))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ("gemma3_text", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar is -1"),
        ("gemma3_text", {"layer_types": ["chunked_attention"] * 2}, "layer_types is"),
        ("gemma3_text", {"layer_types": "full_attention"}, "expected a list"),
        ("gemma3_text", {"rope_local_base_freq": 0}, "rope_local_base_freq is 0"),
        ("smollm3", {"no_rope_layers": [1, 2]}, "no_rope_layers is"),
        ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0"),
        ("smollm3", {"layer_types": ["sliding_attention"] * 2}, "there is no sliding window"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; expected 1"),
        ("phi3", {"partial_rotary_factor": 0.7, "head_dim": 10}, "rotates 7 dimensions"),
        ("phi3", {"rope_scaling": {"type": "su"}}, "lacks short_factor"),
        ("phi3", {"rope_scaling": LONGROPE["rope_parameters"]}, "short_factor has 3 numbers"),
        ("gemma3", {}, "model_type 'gemma3' in config.json is not supported"),
        ("olmo2", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ("smollm3", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ],
)
def test_what_other_families_lack_is_named(kind, values, message):
    with pytest.raises(UserError, match=message):
        config_from_json({"model_type": kind, **SIZES} | values)


@pytest.mark.parametrize("reference", ["phi4-mini", "gemma3"], indirect=True)
def test_configurations_of_transformers_4_are_read(reference):
    """It has bases, scalings and partial rotation at the top."""
    directory, _ = reference
    value = json.loads((directory / "config.json").read_text())
    rope = value.pop("rope_parameters")
    if value["model_type"] == "phi3":
        value |= {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor")}
        names = ("short_factor", "long_factor")
        value["rope_scaling"] = {"type": "longrope"} | {name: rope[name] for name in names}
    else:
        value["rope_theta"] = rope["full_attention"]["rope_theta"]
        value["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    assert config_from_json(value) == hub.load_config(str(directory))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_key_value_heads": 3}, "does not divide"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"mlp_bias": True}, "mlp_bias"),
    ],
)
def test_what_is_not_supported_is_named(values, message):
    with pytest.raises(UserError, match=message):
        LlamaConfig.from_json({"model_type": "llama", **SIZES} | values)


def test_the_rope_of_older_configurations_is_read():
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    config = LlamaConfig.from_json({"model_type": "llama", **SIZES} | old)
    assert config.rope_theta == 5e5
    assert config.rope_scaling == RopeScaling("linear", 2.0)
    assert LlamaConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("reference", ["llama", "smollm3-windows", "gemma3"], indirect=True)
def test_texts_that_share_a_row_do_not_see_each_other(reference):
    """Two texts and padding in one row, against each text alone."""
    module, params = load(reference[0])
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 96, size) for size in (14, 10)]  # Windows are shorter.
    row, segments = np.zeros((1, 30), np.int32), np.zeros((1, 30), np.int32)
    row[0, :24], segments[0, :24] = np.concatenate(texts), np.repeat([1, 2], [14, 10])
    none = row[:, :0]

    def run(ids, **options):
        apply = functools.partial(module.apply, {"params": params}, none, none > 0)
        return np.asarray(jax.jit(apply)(ids, **options))

    packed = run(row, segments_BxU=segments)[0]
    for text, place in zip(texts, (slice(0, 14), slice(14, 24)), strict=True):
        np.testing.assert_allclose(packed[place], run(text[None])[0], atol=2e-5)
