"""GGUF files, written here and read as transformers reads them."""

import copy
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from kpod_jax.models import hub
from kpod_jax.models.gguf_file import GGUFFile
from kpod_jax.models.llama_config import RopeScaling
from kpod_jax.utils.errors import UserError
from tests.conftest import ROOT
from tests.data import gguf_files
from tests.data.test_gguf_tokenizer import BYTE_LEVEL
from tests.models import test_llama as llama
from tests.models import tiny

SIZES = llama.SIZES | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
LLAMA3 = llama.LLAMA3 | {
    "rope_theta": 500000.0,
    "original_max_position_embeddings": 8192,
    "factor": 32.0,
}
LONGROPE = llama.LONGROPE | {
    "rope_parameters": llama.LONGROPE["rope_parameters"]
    | {
        "short_factor": [1.0, 1.1, 1.5, 1.6, 1.7, 2.0],
        "long_factor": [1.0, 2.0, 4.0, 5.0, 6.0, 8.0],
    }
}
# The architecture in the file, the class of transformers, and what is special about each.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "Llama", {}),
    "llama-tied": ("llama", "Llama", {"tie_word_embeddings": True}),
    "llama-bias": ("llama", "Llama", {"attention_bias": True}),
    "llama-linear": (
        "llama",
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
    ),
    "llama3": ("llama", "Llama", {"rope_parameters": LLAMA3}),
    "qwen2": ("qwen2", "Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 24}),
    "olmo2": ("olmo2", "Olmo2", {}),
    "smollm3": ("smollm3", "SmolLM3", {"num_hidden_layers": 4, "tie_word_embeddings": True}),
    "phi3": ("phi3", "Phi3", {"sliding_window": 8}),
    "phi4-mini": ("phi3", "Phi3", {"partial_rotary_factor": 0.75, **LONGROPE}),
    "gemma3": (
        "gemma3",
        "Gemma3Text",
        {"num_hidden_layers": 6, "sliding_window": 8, "query_pre_attn_scalar": 16},
    ),
}
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


_AFTER = {"post_attention_layernorm": "post_attention_norm"}
_OTHER_NAMES = {"olmo2": _AFTER, "gemma3": _AFTER | {"pre_feedforward_layernorm": "ffn_norm"}}


def write(
    path: pathlib.Path,
    model: Any,
    architecture: str = "llama",
    pre: str = "",
    *,
    fields: Mapping[str, int] | None = None,
    has_base: bool = True,
) -> None:
    """A model of transformers as llama.cpp writes it, projections in 8 bits.

    Args:
      path: of the file.
      model: of transformers.
      architecture: what the file calls it.
      pre: kind of its tokenizer; "": it has none.
      fields: more fields of the architecture.
      has_base: whether it gives the base of the rotary frequencies.
    """
    c, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    if has_base:
        writer.add_rope_freq_base(rope["rope_theta"])
    for name, value in (fields or {}).items():
        writer.add_uint32(f"{architecture}.{name}", value)
    if c.head_dim * c.num_attention_heads != c.hidden_size:
        writer.add_key_length(c.head_dim)
    if architecture in ("phi3", "gemma3") and c.sliding_window:
        writer.add_sliding_window(c.sliding_window)
    if rope["rope_type"] == "longrope":
        writer.add_rope_dimension_count(int(c.head_dim * rope["partial_rotary_factor"]))
        writer.add_rope_scaling_orig_ctx_len(c.original_max_position_embeddings)
        writer.add_rope_scaling_attn_factors(model.model.rotary_emb.attention_scaling)
        for name in ("short", "long"):
            factors = np.array(rope[f"{name}_factor"], np.float32)
            writer.add_tensor(f"rope_factors_{name}.weight", factors)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        scaled = model.model.rotary_emb.inv_freq.numpy()
        plain = rope["rope_theta"] ** (-np.arange(0, c.head_dim, 2) / c.head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    if pre:
        gguf_files.add_byte_level(writer, gguf_files.train(*BYTE_LEVEL[pre]()), pre)
    else:
        writer.add_eos_token_id(1)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and c.tie_word_embeddings:
            continue
        array = weight.numpy()
        for kind, heads in (("q", c.num_attention_heads), ("k", c.num_key_value_heads)):
            if (
                architecture in ("llama", "smollm3") and f".{kind}_proj" in name
            ):  # Rotary pairs side by side.
                halves = array.reshape(heads, 2, -1, *array.shape[1:])
                array = halves.swapaxes(1, 2).reshape(array.shape)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            array = array + 1
        names = _NAMES | _OTHER_NAMES.get(architecture, {})
        short, _, leaf = name.rpartition(".")
        if short.startswith("model.layers."):
            _, _, number, rest = short.split(".", 3)
            short = f"blk.{number}.{names[rest]}"
        else:
            short = names[short]
        if array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{short}.{leaf}", gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{short}.{leaf}", array)
    gguf_files.finish(writer)


def torch_model(kind: str, **sizes: int) -> Any:
    """A random model of transformers with values that 8 bits hold."""
    torch.manual_seed(0)
    _, name, more = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**SIZES | copy.deepcopy(more) | sizes)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            kind_of = gguf.GGMLQuantizationType.Q8_0
            coarse = gguf.quants.quantize(weight.detach().numpy(), kind_of)
            weight.data = torch.tensor(gguf.quants.dequantize(coarse, kind_of))
        else:
            weight.data.add_(torch.randn_like(weight) * 0.3)
    return model


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory) -> tuple[str, pathlib.Path, Any]:
    """The kind, a GGUF file, and a model of transformers with the values that it holds."""
    path, model = tmp_path_factory.mktemp("gguf") / "tiny.gguf", torch_model(request.param)
    write(path, model, KINDS[request.param][0])
    return request.param, path, model


def test_logits_are_those_of_transformers(saved):
    _, path, model = saved
    module, params = llama.load(path)
    assert module.config.model_type == model.config.model_type
    arrays = llama.batch()
    expected = llama.torch_logits(model, arrays)
    assert expected.std() > 0.5
    np.testing.assert_allclose(tiny.logits(module, params, arrays), expected, atol=1e-4)


def test_the_scaling_of_llama_3_is_found_in_what_it_amounts_to(tmp_path):
    model = torch_model("llama3")
    write(tmp_path / "tiny.gguf", model)
    config = hub.load_config(str(tmp_path / "tiny.gguf"))
    assert isinstance(config, llama.LlamaConfig)
    assert config.rope_scaling == RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    # Another model's, of which the file does not tell what it is.
    model.model.rotary_emb.inv_freq[1] /= 2
    write(tmp_path / "other.gguf", model)
    with pytest.raises(UserError, match=r"other\.gguf uses a RoPE scaling"):
        hub.load_config(str(tmp_path / "other.gguf"))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "F16", "BF16"])
def test_every_quantization_is_read(tmp_path, name):
    kind = gguf.GGMLQuantizationType[name]
    path, writer = tmp_path / "tiny.gguf", gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    for key, size in {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": 256,
        "feed_forward_length": 64,
    }.items():
        getattr(writer, f"add_{key}")(size)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    # Random bytes would make scales that are not finite.
    halves = rng.normal(size=(8, 256 // block * size // 2)).astype(np.float16)
    raw = halves.view(np.uint8)
    if name in ("F16", "BF16", "Q8_0"):
        raw = gguf.quants.quantize(rng.normal(size=(8, 256)).astype(np.float32), kind)
        raw = raw.view(np.uint8)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=kind)
    gguf_files.finish(writer)
    expected = gguf.quants.dequantize(raw, kind)
    found = GGUFFile(path).get("model.embed_tokens.weight")
    assert found.dtype == np.float32 and found.shape == (8, 256)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("saved", ["llama"], indirect=True)
def test_what_is_not_supported_and_damage_are_named(saved, tmp_path):
    _, path, model = saved
    write(tmp_path / "other.gguf", model, architecture="falcon")
    with pytest.raises(UserError, match=r"architecture 'falcon'; expected one of llama, qwen2"):
        hub.load_config(str(tmp_path / "other.gguf"))
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"Cannot read .*cut\.gguf"):
        hub.load_config(str(tmp_path / "cut.gguf"))
    writer = gguf.GGUFWriter(tmp_path / "long.gguf", "llama")
    writer.add_head_count(4)
    writer.add_embedding_length(64)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
    gguf_files.finish(writer)
    with pytest.raises(UserError, match=r"long\.gguf uses RoPE scaling 'longrope'"):
        hub.load_config(str(tmp_path / "long.gguf"))


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("olmo2", {"attention.sliding_window": 8}, "has a sliding window, as OLMo 3 does"),
        ("llama", {"attention.sliding_window_pattern": 4}, "attention.sliding_window_pattern"),
        ("gemma3", {"attention.sliding_window_pattern": 4}, "attention.sliding_window_pattern"),
    ],
)
def test_windows_that_an_architecture_does_not_have_are_refused(
    tmp_path, architecture, fields, message
):
    model = torch_model("gemma3" if architecture == "gemma3" else "llama")
    write(tmp_path / "tiny.gguf", model, architecture, fields=fields)
    with pytest.raises(UserError, match=message):
        hub.load_config(str(tmp_path / "tiny.gguf"))


def test_gemma_3_has_its_own_base_where_a_file_gives_none(tmp_path):
    write(tmp_path / "tiny.gguf", torch_model("gemma3"), "gemma3", has_base=False)
    config = hub.load_config(str(tmp_path / "tiny.gguf"))
    assert isinstance(config, llama.LlamaConfig)
    assert (config.rope_theta, config.rope_local_base_freq) == (1e6, 1e4)


def test_a_file_that_was_written_again_is_read_again(tmp_path):
    path = tmp_path / "tiny.gguf"
    for kind in ("llama", "qwen2"):
        write(path, torch_model(kind), kind)
        config = hub.load_config(str(path))
        assert isinstance(config, llama.LlamaConfig) and config.model_type == kind


# Reads a student, asks it one question, and writes it, where torch cannot be imported.
_WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None
import jax
import numpy as np
from kpod_jax.data import tokens
from kpod_jax.data.records import Ragged
from kpod_jax.evaluation.generation import Generator
from kpod_jax.models import hub
from kpod_jax.models.student import load_student
from kpod_jax.parallel import sharding

student = load_student(sys.argv[1])
mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
params = student.load(mesh)
prompt = tokens.resolve_prompt(student.tokenizer, "{question}", decoder_only=True, chat=True)
text = prompt.replace("{question}", "Tom has 3 pens and buys 14 more.")
ids = student.tokenizer(text, add_special_tokens=False).input_ids
generator = Generator(student, mesh, ids[-1], batch_size=1, max_new_tokens=8)
found = generator(params, Ragged.from_list([ids[:-1]], np.int32))[0, 0]
hub.save_pretrained(sys.argv[2], student.config, params, student.tokenizer)
load_student(sys.argv[2])
print(json.dumps([ids, found.tolist()]))
"""


def run_without_torch(path: pathlib.Path, directory: pathlib.Path) -> tuple[list[int], list[int]]:
    """Writes a GGUF student to `directory`: a prompt of it, and 8 tokens that it says to that."""
    command = [sys.executable, "-c", _WITHOUT_TORCH, str(path), str(directory)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    prompt, found = json.loads(done.stdout.splitlines()[-1])
    return prompt, found


def check_export(directory: pathlib.Path, prompt: list[int], found: list[int]) -> None:
    """The same tokens come out of the directory in transformers."""
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    with torch.no_grad():
        expected = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=len(found),
        )[0, len(prompt) :].numpy()
    np.testing.assert_array_equal(found[: len(expected)], expected)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    turns = [{"role": "user", "content": "Tom has 3 pens and buys 14 more."}]
    again = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
    assert again["input_ids"] == prompt


@pytest.mark.parametrize(
    ("kind", "pre"),
    [
        ("llama-tied", "smollm"),
        pytest.param("llama3", "llama-bpe", marks=pytest.mark.slow),
        pytest.param("qwen2", "qwen2", marks=pytest.mark.slow),
    ],
)
def test_a_student_is_read_asked_and_written_without_torch(tmp_path, kind, pre):
    model = torch_model(kind, vocab_size=448)
    write(tmp_path / "tiny.gguf", model, KINDS[kind][0], pre)
    check_export(tmp_path / "out", *run_without_torch(tmp_path / "tiny.gguf", tmp_path / "out"))
