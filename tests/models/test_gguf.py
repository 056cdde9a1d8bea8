"""GGUF files, written here and read as transformers reads them."""

import pathlib
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from kpod_jax.models import hub
from kpod_jax.utils.errors import UserError
from tests.models import test_llama as llama
from tests.models import tiny

SIZES = llama.SIZES | {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def write(path: pathlib.Path, model: Any, architecture: str = "llama") -> None:
    """A model of transformers as llama.cpp writes it, projections in 8 bits."""
    c, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_eos_token_id(1)
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        for kind, heads in (("q", c.num_attention_heads), ("k", c.num_key_value_heads)):
            if f"{kind}_proj" in name:  # Rotary pairs side by side.
                halves = array.reshape(heads, 2, -1, array.shape[1])
                array = halves.swapaxes(1, 2).reshape(array.shape)
        short = name.removesuffix(".weight")
        if short.startswith("model.layers."):
            _, _, number, rest = short.split(".", 3)
            short = f"blk.{number}.{_NAMES[rest]}"
        else:
            short = _NAMES[short]
        if array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{short}.weight", gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{short}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[pathlib.Path, Any]:
    """A GGUF file, and a model of transformers with the values that it holds."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(SIZES)).eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            coarse = gguf.quants.dequantize(
                gguf.quants.quantize(weight.detach().numpy(), kind), kind
            )
            weight.data = torch.tensor(coarse)
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write(path, model)
    return path, model


def test_logits_are_those_of_transformers(saved):
    path, model = saved
    module, params = llama.load(path)
    arrays = llama.batch()
    expected = llama.torch_logits(model, arrays)
    assert expected.std() > 0.5
    np.testing.assert_allclose(tiny.logits(module, params, arrays), expected, atol=1e-4)


def test_other_architectures_and_damage_are_named(saved, tmp_path):
    path, model = saved
    write(tmp_path / "other.gguf", model, architecture="falcon")
    with pytest.raises(UserError, match="architecture 'falcon'"):
        hub.load_config(str(tmp_path / "other.gguf"))
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"Cannot read .*cut\.gguf"):
        hub.load_config(str(tmp_path / "cut.gguf"))
