"""A custom model family: Seed-OSS, which is LLaMA with biases on queries, keys and values."""

import dataclasses

from kpod_jax.models.families import Family
from kpod_jax.models.llama import Llama
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class SeedOssConfig(LlamaConfig):
    """The `config.json` of Seed-OSS models."""

    architectures = {"seed_oss": "SeedOssForCausalLM"}  # noqa: RUF012

    model_type: str = "seed_oss"
    attention_bias: bool = True

    @property
    def biases(self):
        """The attention projections that have a bias."""
        return ("q", "k", "v") if self.attention_bias else ()

    @classmethod
    def from_json(cls, value):
        """Parses `config.json`."""
        if value.get("attention_out_bias"):
            raise UserError("attention_out_bias is true; expected false.")
        return super().from_json(value)


SEED_OSS = Family(SeedOssConfig, Llama)
