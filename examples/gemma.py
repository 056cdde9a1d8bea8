"""A custom family of students: Gemma, which is LLaMA with a few changes."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from kpod_jax.models.families import Family
from kpod_jax.models.layers import RMSNorm, partitioned
from kpod_jax.models.llama import Llama
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.models.llama_layers import Layer


@dataclasses.dataclass(frozen=True)
class GemmaConfig(LlamaConfig):
    """The `config.json` of first-generation Gemma models."""

    architectures = {"gemma": "GemmaForCausalLM"}  # noqa: RUF012
    hidden_act = "gelu_pytorch_tanh"

    model_type: str = "gemma"
    head_dim: int = 256
    tie_word_embeddings: bool = True

    @classmethod
    def from_json(cls, value):
        """Parses `config.json`; published files say "gelu" for the tanh approximation."""
        return super().from_json({**value, "hidden_act": cls.hidden_act})


class GemmaNorm(RMSNorm):
    """RMS norm x / rms(x) * (1 + scale): the stored scale is an offset from 1."""

    @nn.compact
    def __call__(self, x):
        """[..., D] -> [..., D]."""
        zeros = partitioned(nn.initializers.zeros, self.axis)
        scale = self.param("scale", zeros, (self.size,), self.param_dtype)
        x = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        x *= jax.lax.rsqrt(mean_square + self.epsilon)
        return (x * (1 + scale.astype(jnp.float32))).astype(self.dtype)


class GemmaLayer(Layer):
    """LLaMA layer with a different norm and activation."""

    norm_class = GemmaNorm
    activation = staticmethod(jax.nn.gelu)  # The tanh approximation by default.


class Gemma(Llama):
    """LLaMA with scaled embeddings."""

    layer_class = GemmaLayer

    def embed(self, ids):
        """Embeds ids, [...] int -> [..., D]; the head shares the table, but is not scaled."""
        x = super().embed(ids)
        return x * jnp.asarray(self.config.hidden_size**0.5, x.dtype)


GEMMA = Family(GemmaConfig, Gemma)
