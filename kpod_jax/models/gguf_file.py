"""GGUF files of the LLaMA architecture, read as if they were Hugging Face directories.

Tensors are dequantised one at a time. Rows of the query and key projections are interleaved in
these files (dimensions 2i and 2i + 1 are a rotary pair) and are put back (i and i + H / 2).
"""

import pathlib
import re
from typing import Any

import numpy as np

from kpod_jax.models.llama_config import LlamaConfig, RopeScaling
from kpod_jax.utils.errors import UserError

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GGUFFile:
    """A GGUF file: its architecture, and its tensors under Hugging Face's names.

    Raises:
      UserError: it is damaged, or not of the LLaMA architecture.
    """

    def __init__(self, path: pathlib.Path) -> None:
        import gguf

        self._path, self._dequantize = path, gguf.quants.dequantize
        try:
            reader = gguf.GGUFReader(path)
        except (OSError, ValueError, IndexError) as error:
            raise UserError(f"Cannot read {path}: {error}. Fetch or copy it again.") from error
        self._fields = reader.fields
        if (architecture := self._field("general.architecture")) != "llama":
            raise UserError(
                f"{path} is a GGUF file of the architecture {architecture!r}; expected 'llama'. "
                "Give the model's Hugging Face directory instead."
            )
        self._tensors = {_hf_name(tensor.name): tensor for tensor in reader.tensors}
        self.names = {name for name in self._tensors if name != "rope_freqs.weight"}
        self.config = self._config()

    def get(self, name: str) -> np.ndarray:
        """A tensor, float32, outputs first."""
        tensor = self._tensors[name]
        array = self._dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        array = array.reshape(tuple(int(size) for size in tensor.shape[::-1]))
        heads = {
            "q_proj": self.config.num_attention_heads,
            "k_proj": self.config.num_key_value_heads,
        }.get(name.split(".")[-2])
        if heads is None:
            return array
        pairs = array.reshape(heads, -1, 2, *array.shape[1:])
        return pairs.swapaxes(1, 2).reshape(array.shape)

    def _field(self, key: str, default: Any = None) -> Any:
        field = self._fields.get(key)
        if field is None:
            return default
        value = field.contents()
        return value.item() if isinstance(value, np.generic) else value

    def _config(self) -> LlamaConfig:
        def value(key: str, default: Any = None) -> Any:
            found = self._field(f"llama.{key}", default)
            if found is None:
                raise UserError(f"{self._path} lacks the field llama.{key}. Fetch it again.")
            return found

        heads, width = value("attention.head_count"), value("embedding_length")
        if "rope_freqs.weight" in self._tensors:
            raise UserError(
                f"{self._path} scales its rotary positions (rope_freqs.weight), which is not "
                "supported in GGUF files. Give the model's Hugging Face directory instead."
            )
        scaling = RopeScaling()
        if value("rope.scaling.type", "none") == "linear":
            scaling = RopeScaling("linear", float(value("rope.scaling.factor")))
        eos = self._field("tokenizer.ggml.eos_token_id", LlamaConfig.eos_token_id)
        return LlamaConfig(
            vocab_size=int(self._tensors["model.embed_tokens.weight"].shape[1]),
            hidden_size=width,
            intermediate_size=value("feed_forward_length"),
            num_hidden_layers=value("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=value("attention.head_count_kv", heads),
            head_dim=value("attention.key_length", width // heads),
            rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
            rope_theta=float(value("rope.freq_base", 10000.0)),
            rope_scaling=scaling,
            tie_word_embeddings="lm_head.weight" not in self.names,
            max_position_embeddings=value("context_length"),
            pad_token_id=self._field("tokenizer.ggml.padding_token_id", eos),
            eos_token_id=eos,
            bos_token_id=self._field("tokenizer.ggml.bos_token_id", LlamaConfig.bos_token_id),
        )


def _hf_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _NAMES:
        return name
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{_NAMES[match[2]]}.{match[3]}"
