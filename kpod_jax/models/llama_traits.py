"""How other decoder-only models differ from LLaMA: one line for each `model_type`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclasses.dataclass(frozen=True)
class Traits:
    """What is special about a model type; the defaults are LLaMA's.

    Attributes:
      architecture: the class of transformers.
      activation: of the feed-forward layers' gate, as `config.json` calls it.
      activation_key: the key of the activation in `config.json`.
      biases: the projections that always have a bias.
      norms: where each sublayer has a norm: "before", "after" (of its output, before it is added to
        the residual) or "both".
      norm_offset: added to the stored scales of norms.
      qk_norm: the norm of queries and keys: "", "head" (each head by itself) or "all" (all heads
        together).
      scales_embeddings: whether embeddings are multiplied by the square root of the width.
      local_rope: whether layers with a sliding window have a base of rotary frequencies of their
        own (`rope_local_base_freq`).
      fused: whether files hold q, k and v in one tensor, and gate and up in another.
      defaults: values of keys that a `config.json` does not give, where they are not LLaMA's.
    """

    architecture: str = "LlamaForCausalLM"
    activation: str = "silu"
    activation_key: str = "hidden_act"
    biases: tuple[str, ...] = ()
    norms: str = "before"
    norm_offset: float = 0.0
    qk_norm: str = ""
    scales_embeddings: bool = False
    local_rope: bool = False
    fused: bool = False
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_EPSILON = {"rms_norm_eps": 1e-5}
_QWEN = {"sliding_window": 4096}
_PHI = {"original_max_position_embeddings": 4096}
_TIED = {"tie_word_embeddings": True}
TRAITS = {
    "llama": Traits(),
    "mistral": Traits("MistralForCausalLM", defaults={"sliding_window": 4096}),
    "qwen2": Traits("Qwen2ForCausalLM", biases=("q", "k", "v"), defaults=_QWEN),
    "qwen3": Traits("Qwen3ForCausalLM", qk_norm="head", defaults=_QWEN | {"head_dim": 128}),
    "olmo2": Traits("Olmo2ForCausalLM", norms="after", qk_norm="all", defaults=_EPSILON),
    "smollm3": Traits("SmolLM3ForCausalLM", defaults=_TIED | {"rope_theta": 2e6}),
    "phi3": Traits("Phi3ForCausalLM", fused=True, defaults=_EPSILON | _PHI),
    "gemma3_text": Traits(
        "Gemma3ForCausalLM",
        activation="gelu_pytorch_tanh",
        activation_key="hidden_activation",
        norms="both",
        norm_offset=1.0,
        qk_norm="head",
        scales_embeddings=True,
        local_rope=True,
        defaults=_TIED
        | {
            "rope_theta": 1e6,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
        },
    ),
}


class LayerKind(NamedTuple):
    """What distinguishes the attention of a layer from that of other layers.

    Attributes:
      rope: "global", "local" (`rope_local_base_freq`, unscaled) or "none".
      window: number of latest tokens that a query sees, itself included; None: all.
    """

    rope: str
    window: int | None
