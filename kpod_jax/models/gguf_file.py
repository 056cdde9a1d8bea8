"""Reads GGUF files of decoder-only models as if they were Hugging Face directories.

Tensors are dequantized one at a time. Where a file interleaves the rows of queries and keys,
reading restores Hugging Face's order, in which dimensions i and i + H / 2 form a rotary pair.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from kpod_jax.models import gguf_names
from kpod_jax.models.gguf_names import ROPE_DIVISORS, ROPE_FACTORS
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.models.llama_traits import FULL, SLIDING, TRAITS
from kpod_jax.models.rope import (
    RopeScaling,
    frequencies,
    longrope_attention_factor,
    yarn_attention_factor,
)
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.gguf_contents import read_gguf

_USE_DIRECTORY = "Give the model's Hugging Face directory instead."
# What llama.cpp assumes of these architectures, whose files do not say so.
_NO_ROPE_INTERVAL, _FULL_INTERVAL = 4, 6
_LAYERS_OF_GEMMA_3_27B = 62


class GGUFFile:
    """A GGUF file: its architecture, and its tensors under Hugging Face names.

    Raises:
      UserError: the file is damaged, or its architecture is not supported.
    """

    def __init__(self, path: pathlib.Path) -> None:
        file = read_gguf(path)
        self._path, self._fields = path, file.fields
        if (kind := file.fields.get("general.type", "model")) != "model":
            raise UserError(f"{path} is a GGUF file of type {kind!r}; expected a model.")
        if (architecture := file.field("general.architecture")) not in tuple(
            gguf_names.MODEL_TYPES
        ):
            raise UserError(
                f"{path} is a GGUF file with architecture {architecture!r}; expected one of "
                f"{', '.join(gguf_names.MODEL_TYPES)}. {_USE_DIRECTORY}"
            )
        self._architecture = architecture
        self._tensors = {
            gguf_names.hf_name(name, architecture): tensor for name, tensor in file.tensors.items()
        }
        self.names = set(self._tensors) - {ROPE_DIVISORS, *ROPE_FACTORS}
        try:
            self.config = self._config()
        except UserError as error:
            # Those of the configuration's values do not name the file.
            raise UserError(
                str(error) if str(path) in str(error) else f"{path}: {error}"
            ) from error

    def get(self, name: str) -> np.ndarray:
        """Returns a tensor in float32, outputs first."""
        array = self._get(name)
        if self._architecture in gguf_names.OFFSET_NORMS and name.endswith("norm.weight"):
            return array - 1
        heads = {
            "q_proj": self.config.num_attention_heads,
            "k_proj": self.config.num_key_value_heads,
        }.get(name.split(".")[-2])
        if heads is None or self._architecture not in gguf_names.INTERLEAVED:
            return array
        pairs = array.reshape(heads, -1, 2, *array.shape[1:])
        return pairs.swapaxes(1, 2).reshape(array.shape)

    def _get(self, name: str) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        try:
            array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        except NotImplementedError as error:
            raise UserError(
                f"{self._path} stores {tensor.name} as {tensor.tensor_type.name}, which cannot be "
                f"read. Give a file of another quantization, or {_USE_DIRECTORY[5:]}"
            ) from error
        return array.reshape(tensor.shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape, outputs first."""
        return self._tensors[name].shape

    def _value(self, key: str, default: Any = None) -> Any:
        """Returns a field of the architecture."""
        value = self._fields.get(f"{self._architecture}.{key}", default)
        if value is None:
            raise UserError(
                f"{self._path} lacks the field {self._architecture}.{key}. Download the file again."
            )
        return value

    def _unsupported(self, what: str) -> UserError:
        return UserError(f"{self._path} {what}, which is not supported. {_USE_DIRECTORY}")

    def _config(self) -> LlamaConfig:
        value, scaling = self._value, self._rope_scaling()
        if (embedding := self._tensors.get("model.embed_tokens.weight")) is None:
            raise UserError(
                f"{self._path} lacks the tensor token_embd.weight. Download the file again."
            )
        if len(embedding.shape) != 2:
            raise UserError(
                f"{self._path}: the weight token_embd.weight has shape {list(embedding.shape)}; "
                "expected two dimensions. Download the file again."
            )
        vocab, width = embedding.shape[0], value("embedding_length")
        heads = value("attention.head_count")
        sizes = {
            "attention.head_count": heads,
            "attention.head_count_kv": value("attention.head_count_kv", heads),
            "feed_forward_length": value("feed_forward_length"),
        }
        for key, size in sizes.items():
            if isinstance(size, list):  # Pruned models have one value per layer.
                if len(set(size)) > 1:
                    raise self._unsupported(f"has layers of different {key}")
                sizes[key] = size[0]
        heads = sizes["attention.head_count"]
        if width % heads and f"{self._architecture}.attention.key_length" not in self._fields:
            raise UserError(
                f"{self._path}: attention.head_count={heads} does not divide embedding_length="
                f"{width}, and there is no attention.key_length. Download the file again."
            )
        head_dim = value("attention.key_length", width // heads)
        rotated = head_dim
        if self._architecture == "phi3":
            rotated = value("rope.dimension_count", head_dim)
        for key, neutral in (
            ("attention.value_length", head_dim),
            ("rope.dimension_count", rotated),
            ("expert_count", 0),
            ("attn_logit_softcapping", 0),
            ("final_logit_softcapping", 0),
            ("logit_scale", 1),
            ("residual_scale", 1),
            ("embedding_scale", 1),
            ("attention.scale", head_dim**-0.5),
        ):
            if (given := value(key, neutral)) not in (0, None) and abs(given - neutral) > 1e-6:
                raise self._unsupported(f"has {key} {given}")
        # Zero stands for none.
        window = value("attention.sliding_window", 0) or None
        model_type = gguf_names.MODEL_TYPES[self._architecture]
        pattern = self._fields.get(f"{self._architecture}.attention.sliding_window_pattern")
        if pattern not in (None, _FULL_INTERVAL if self._architecture == "gemma3" else None):
            raise self._unsupported("has its own attention.sliding_window_pattern")
        if window is not None and self._architecture == "olmo2":
            raise self._unsupported("has a sliding window, as OLMo 3 does")
        theta = TRAITS[model_type].defaults.get("rope_theta", 10000.0)
        if window is not None and model_type == "llama":
            model_type = "mistral"

        def token_id(name: str, default: int) -> int:
            given = self._fields.get(f"tokenizer.ggml.{name}_token_id", default)
            return given if given < vocab else default

        eos = token_id("eos", LlamaConfig.eos_token_id)
        config = LlamaConfig(
            model_type=model_type,
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=sizes["feed_forward_length"],
            num_hidden_layers=value("block_count"),
            num_attention_heads=heads,
            num_key_value_heads=sizes["attention.head_count_kv"],
            head_dim=head_dim,
            rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
            rope_theta=float(value("rope.freq_base", theta)),
            rope_scaling=scaling,
            tie_word_embeddings="lm_head.weight" not in self.names,
            attention_bias="model.layers.0.self_attn.o_proj.bias" in self.names,
            sliding_window=window,
            **self._layers(value("block_count"), width // heads),
            partial_rotary_factor=rotated / head_dim,
            max_position_embeddings=value("context_length"),
            pad_token_id=token_id("padding", eos),
            eos_token_id=eos,
            bos_token_id=token_id("bos", LlamaConfig.bos_token_id),
        )
        return self._with_llama3_scaling(config) if ROPE_DIVISORS in self._tensors else config

    def _layers(self, count: int, width: int) -> dict[str, Any]:
        """Returns what llama.cpp assumes of an architecture's layers.

        Args:
          count: number of layers.
          width: model width by the number of heads.
        """
        if self._architecture == "smollm3":
            rotates = tuple(int((i + 1) % _NO_ROPE_INTERVAL != 0) for i in range(count))
            return {"no_rope_layers": () if all(rotates) else rotates}
        if self._architecture != "gemma3":
            return {}
        types = tuple(SLIDING if (i + 1) % _FULL_INTERVAL else FULL for i in range(count))
        scalar = float(width) if count == _LAYERS_OF_GEMMA_3_27B else None
        return {
            "layer_types": types if FULL in types else (),
            "query_pre_attn_scalar": scalar,
        }

    def _rope_scaling(self) -> RopeScaling:
        """Returns the scaling that llama.cpp computes from a file's metadata."""

        def value(key: str, default: float) -> float:
            return float(self._value(f"rope.scaling.{key}", default))

        if ROPE_FACTORS[0] in self._tensors:
            return self._longrope()
        # Old files have one factor and no type.
        factor = value("factor", float(self._value("rope.scale_linear", 0.0)))
        kind = self._value("rope.scaling.type", "linear" if factor else "none")
        if kind == "none" or (kind == "linear" and factor in (0, 1)):
            return RopeScaling()
        if kind not in ("linear", "yarn"):
            raise UserError(
                f"{self._path} uses RoPE scaling {kind!r}, which is not supported; expected none, "
                f"linear, yarn, or LLaMA 3's (the tensor {ROPE_DIVISORS}). {_USE_DIRECTORY}"
            )
        if not factor:
            self._value("rope.scaling.factor")  # Raises.
        if kind == "linear":
            return RopeScaling(kind, factor)
        for key, neutral in (("yarn_ext_factor", 1), ("yarn_log_multiplier", 0)):
            if value(key, neutral) not in (neutral, -1):  # -1 stands for the default.
                raise self._unsupported(f"has rope.scaling.{key} {value(key, neutral)}")
        scale = value("attn_factor", 1.0) * value("yarn_attn_factor", 1.0)
        return RopeScaling(
            kind,
            factor,
            original_max_position_embeddings=int(
                value("original_context_length", self._value("context_length"))
            ),
            beta_fast=value("yarn_beta_fast", 32.0),
            beta_slow=value("yarn_beta_slow", 1.0),
            attention_factor=scale * yarn_attention_factor(factor),
        )

    def _longrope(self) -> RopeScaling:
        """Returns LongRoPE's scaling, whose factors are tensors."""
        length = self._value("context_length")
        original = int(self._value("rope.scaling.original_context_length", length))
        if missing := [name for name in ROPE_FACTORS if name not in self._tensors]:
            raise UserError(f"{self._path} lacks the tensor {missing[0]}. Download it again.")
        short, long = (tuple(map(float, self._get(name).ravel())) for name in ROPE_FACTORS)
        derived = longrope_attention_factor(length, max(original, 2))
        return RopeScaling(
            "longrope",
            original_max_position_embeddings=original,
            attention_factor=float(self._value("rope.scaling.attn_factor", derived)),
            short_factor=short,
            long_factor=long,
        )

    def _with_llama3_scaling(self, config: LlamaConfig) -> LlamaConfig:
        """Recovers LLaMA 3's RoPE scaling from its divisors, which are all that the file stores."""
        divisors = self._get(ROPE_DIVISORS)
        # All published LLaMA 3 models agree on the other three numbers.
        scaled = dataclasses.replace(
            config, rope_scaling=RopeScaling("llama3", float(divisors.max()), 1.0, 4.0, 8192)
        )
        head_dim, theta = config.head_dim, config.rope_theta
        plain = frequencies(head_dim, theta, RopeScaling())
        with np.errstate(all="ignore"):  # Damaged divisors may be zero.
            expected = plain / frequencies(head_dim, theta, scaled.rope_scaling)
        if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
            raise UserError(
                f"{self._path} uses a RoPE scaling ({ROPE_DIVISORS}) that differs from LLaMA 3's, "
                f"which is not supported. {_USE_DIRECTORY}"
            )
        return scaled
