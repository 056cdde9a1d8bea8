"""A family of students of one's own: Gemma, which is LLaMA with a few changes."""

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
    """Gemma's `config.json`, of the first generation."""

    architectures = {"gemma": "GemmaForCausalLM"}  # noqa: RUF012
    hidden_act = "gelu_pytorch_tanh"

    model_type: str = "gemma"
    head_dim: int = 256
    tie_word_embeddings: bool = True

    @classmethod
    def from_json(cls, value):
        """Published files say "gelu" and mean its approximation by tanh."""
        return super().from_json({**value, "hidden_act": cls.hidden_act})


class GemmaNorm(RMSNorm):
    """x / rms(x) * (1 + scale): what is stored is how far the factor is from 1."""

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
    """LLaMA's layer with another norm and another gate."""

    norm_class = GemmaNorm
    activation = staticmethod(jax.nn.gelu)  # Its default is the approximation by tanh.


class Gemma(Llama):
    """LLaMA, whose embeddings are scaled up."""

    layer_class = GemmaLayer

    def embed(self, ids):
        """[...] int -> [..., D]; the head, which is the same table, is not scaled."""
        x = super().embed(ids)
        return x * jnp.asarray(self.config.hidden_size**0.5, x.dtype)


GEMMA = Family(GemmaConfig, Gemma)
