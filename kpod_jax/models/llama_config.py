"""The LLaMA family's configuration, as Hugging Face's `config.json` has it.

LLaMA 1 to 3 and SmolLM2 (model_type llama), Mistral, Qwen2, Qwen2.5 (qwen2) and Qwen3: one
architecture that differs in biases, norms of queries and keys, and how positions are scaled.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from kpod_jax.models import llama_names
from kpod_jax.utils.errors import UserError

_ROPE_TYPES = ("default", "linear", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed for contexts longer than those first trained on.

    Attributes:
      rope_type: "default" (not at all), "linear" or "llama3".
      factor: frequencies are divided by it; by "llama3" the low ones alone.
      low_freq_factor: of "llama3": wavelengths above original / low are scaled in full.
      high_freq_factor: of "llama3": wavelengths below original / high are not scaled.
      original_max_position_embeddings: of "llama3".
    """

    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """A decoder-only model's architecture; names are those of `config.json`.

    Attributes:
      names: of the weights, see `families.Family`.
      architectures: for each model_type, its class in transformers.
      hidden_act: the feed-forward layers' activation.
      model_type: one of `architectures`.
      vocab_size: V.
      hidden_size: D.
      intermediate_size: F.
      num_hidden_layers: of the stack.
      num_attention_heads: N, of queries.
      num_key_value_heads: K, of keys and values; divides N.
      head_dim: H.
      rms_norm_eps: added to the mean square.
      rope_theta: base of the rotary frequencies.
      rope_scaling: see there.
      tie_word_embeddings: the head is the embedding table.
      attention_bias: q, k, v and o have biases (model_type qwen2: q, k and v, always).
      sliding_window: keys further back are not seen; None: all are.
      max_position_embeddings: longest sequence that it was trained on.
      pad_token_id: fills sequences up.
      eos_token_id: ends them.
      bos_token_id: begins them, where the tokenizer wants it.
    """

    names: ClassVar[Any] = llama_names
    architectures: ClassVar[Mapping[str, str]] = {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
    }
    hidden_act: ClassVar[str] = "silu"

    model_type: str = "llama"
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = RopeScaling()
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    sliding_window: int | None = None
    max_position_embeddings: int = 2048
    pad_token_id: int = 0
    eos_token_id: int = 2
    bos_token_id: int = 1

    def __post_init__(self) -> None:
        if self.model_type not in self.architectures:
            raise UserError(
                f"model_type is {self.model_type!r}; expected one of "
                f"{', '.join(self.architectures)}."
            )
        for name, value in vars(self).items():
            low = 0 if name.endswith("_token_id") else 1
            if type(self.__dataclass_fields__[name].default) is int and (
                type(value) is not int or value < low
            ):
                raise UserError(
                    f"LLaMA configuration: {name} is {value!r}; expected an integer >= {low}."
                )
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"LLaMA configuration: num_key_value_heads={self.num_key_value_heads} does not "
                f"divide num_attention_heads={self.num_attention_heads}."
            )
        if self.head_dim % 2:
            raise UserError(f"LLaMA configuration: head_dim={self.head_dim} is odd.")
        if self.rope_scaling.rope_type not in _ROPE_TYPES:
            raise UserError(
                f"LLaMA configuration: rope_type {self.rope_scaling.rope_type!r} is not "
                f"supported; expected one of {', '.join(_ROPE_TYPES)}."
            )

    @property
    def d_model(self) -> int:
        """D, under the name that T5 has for it."""
        return self.hidden_size

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normed, head by head."""
        return self.model_type == "qwen3"

    @property
    def biases(self) -> tuple[str, ...]:
        """The projections that have one."""
        if self.model_type == "qwen2":
            return ("q", "k", "v")
        return ("q", "k", "v", "o") if self.attention_bias else ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "LlamaConfig":
        """Reads what `config.json` says of the architecture; its other keys are passed over.

        Raises:
          UserError: it is of another family, or a value is not supported.
        """
        known: dict[str, Any] = {
            field.name: value[field.name]
            for field in dataclasses.fields(cls)
            if value.get(field.name) is not None
        }
        if (act := value.get("hidden_act", cls.hidden_act)) != cls.hidden_act:
            raise UserError(f"hidden_act is {act!r}; expected {cls.hidden_act!r}.")
        if value.get("mlp_bias"):
            raise UserError("mlp_bias is true; expected false.")
        heads = known.get("num_attention_heads", cls.num_attention_heads)
        known.setdefault("num_key_value_heads", heads)
        known.setdefault("head_dim", known.get("hidden_size", cls.hidden_size) // heads)
        for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
            if isinstance(known.get(name), list):
                known[name] = known[name][0]
        known.setdefault("pad_token_id", known.get("eos_token_id", cls.eos_token_id))
        if value.get("use_sliding_window") is False:
            known.pop("sliding_window", None)
        # transformers 5 keeps all of it in rope_parameters, earlier ones the base apart.
        rope = dict(value.get("rope_parameters") or value.get("rope_scaling") or {})
        known["rope_theta"] = float(rope.get("rope_theta", known.get("rope_theta", cls.rope_theta)))
        rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
        names = {field.name for field in dataclasses.fields(RopeScaling)}
        known["rope_scaling"] = RopeScaling(**{k: v for k, v in rope.items() if k in names})
        return cls(**known)

    def to_json(self) -> dict[str, Any]:
        """A `config.json` that transformers 4 and 5 and `from_json` read the same."""
        value = dataclasses.asdict(self)
        scaling = value.pop("rope_scaling")
        if scaling["rope_type"] == "default":
            scaling = {"rope_type": "default"}
        elif scaling["rope_type"] == "linear":
            scaling = {"rope_type": "linear", "factor": scaling["factor"]}
        value["rope_parameters"] = scaling | {"rope_theta": self.rope_theta}
        if scaling["rope_type"] != "default":
            value["rope_scaling"] = scaling
        value["hidden_act"] = self.hidden_act
        return {"architectures": [self.architectures[self.model_type]], **value}


def _llama(hidden: int, inner: int, layers: int, heads: int, **more: Any) -> LlamaConfig:
    sizes: dict[str, Any] = {"num_key_value_heads": heads, "head_dim": hidden // heads} | more
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **sizes,
    )


# Architectures by their id on the Hugging Face hub, for students that start from random values.
NAMED = {
    "huggyllama/llama-7b": _llama(4096, 11008, 32, 32),
    "meta-llama/Llama-2-7b-hf": _llama(
        4096, 11008, 32, 32, rms_norm_eps=1e-5, max_position_embeddings=4096
    ),
    "HuggingFaceTB/SmolLM2-135M": _llama(
        576,
        1536,
        30,
        9,
        num_key_value_heads=3,
        vocab_size=49152,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=0,
    ),
}
