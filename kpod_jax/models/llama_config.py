"""The LLaMA family's configuration, with the keys of Hugging Face's `config.json`.

Covers LLaMA 1 to 3 and SmolLM2 (model_type llama), Mistral, Qwen2 and Qwen2.5 (qwen2), and Qwen3.
They differ only in biases, query and key norms, and the scaling of positions.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from kpod_jax.models import llama_names
from kpod_jax.utils.errors import UserError

_ROPE_TYPES = ("default", "linear", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary frequencies for contexts longer than the original training context.

    Attributes:
      rope_type: "default" (no scaling), "linear" or "llama3".
      factor: divides the frequencies; for "llama3", only the low ones.
      low_freq_factor: "llama3" only: wavelengths above original / low are fully scaled.
      high_freq_factor: "llama3" only: wavelengths below original / high are not scaled.
      original_max_position_embeddings: "llama3" only: the original context length.
    """

    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """A decoder-only model's architecture; fields are named as in `config.json`.

    Attributes:
      names: names of the weights; see `families.Family`.
      architectures: the transformers class of each model_type.
      hidden_act: activation of the feed-forward layers.
      model_type: one of `architectures`.
      vocab_size: V.
      hidden_size: D.
      intermediate_size: F.
      num_hidden_layers: number of layers.
      num_attention_heads: N, query heads.
      num_key_value_heads: K, key and value heads; divides N.
      head_dim: H.
      rms_norm_eps: added to the mean square.
      rope_theta: base of the rotary frequencies.
      rope_scaling: scaling of the rotary frequencies.
      tie_word_embeddings: whether the head is the embedding table.
      attention_bias: whether q, k, v and o have biases (in qwen2, q, k and v always do).
      sliding_window: number of latest tokens that a query sees, itself included; None: all.
      max_position_embeddings: maximum sequence length in training.
      pad_token_id: pads sequences.
      eos_token_id: ends sequences.
      bos_token_id: begins sequences, if the tokenizer adds it.
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
            minimum = 0 if name.endswith("_token_id") else 1
            if type(self.__dataclass_fields__[name].default) is int and (
                type(value) is not int or value < minimum
            ):
                raise UserError(
                    f"LLaMA configuration: {name} is {value!r}; expected an integer >= {minimum}."
                )
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"LLaMA configuration: num_key_value_heads={self.num_key_value_heads} does not "
                f"divide num_attention_heads={self.num_attention_heads}."
            )
        if self.head_dim % 2:
            raise UserError(
                f"LLaMA configuration: head_dim={self.head_dim} is odd; expected an even number."
            )
        if self.rope_scaling.rope_type not in _ROPE_TYPES:
            raise UserError(
                f"LLaMA configuration: rope_type {self.rope_scaling.rope_type!r} is not "
                f"supported; expected one of {', '.join(_ROPE_TYPES)}."
            )

    @property
    def d_model(self) -> int:
        """D, under T5's name."""
        return self.hidden_size

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalized per head."""
        return self.model_type == "qwen3"

    @property
    def biases(self) -> tuple[str, ...]:
        """The attention projections that have a bias."""
        if self.model_type == "qwen2":
            return ("q", "k", "v")
        return ("q", "k", "v", "o") if self.attention_bias else ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "LlamaConfig":
        """Reads the architecture from `config.json`, ignoring its other keys.

        Raises:
          UserError: the model belongs to another family, or a value is not supported.
        """
        fields: dict[str, Any] = {
            field.name: value[field.name]
            for field in dataclasses.fields(cls)
            if value.get(field.name) is not None
        }
        if (act := value.get("hidden_act", cls.hidden_act)) != cls.hidden_act:
            raise UserError(f"hidden_act is {act!r}; expected {cls.hidden_act!r}.")
        if value.get("mlp_bias"):
            raise UserError("mlp_bias is true; expected false.")
        heads = fields.get("num_attention_heads", cls.num_attention_heads)
        fields.setdefault("num_key_value_heads", heads)
        fields.setdefault("head_dim", fields.get("hidden_size", cls.hidden_size) // heads)
        for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
            if isinstance(fields.get(name), list):
                fields[name] = fields[name][0]
        fields.setdefault("pad_token_id", fields.get("eos_token_id", cls.eos_token_id))
        if value.get("use_sliding_window") is False:
            fields.pop("sliding_window", None)
        # transformers 5 stores everything in rope_parameters; older versions store rope_theta
        # separately.
        rope = dict(value.get("rope_parameters") or value.get("rope_scaling") or {})
        fields["rope_theta"] = float(
            rope.get("rope_theta", fields.get("rope_theta", cls.rope_theta))
        )
        rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
        names = {field.name for field in dataclasses.fields(RopeScaling)}
        fields["rope_scaling"] = RopeScaling(**{k: v for k, v in rope.items() if k in names})
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """Returns a `config.json` that transformers 4 and 5 and `from_json` read the same way."""
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


def _llama(hidden: int, inner: int, layers: int, heads: int, **other: Any) -> LlamaConfig:
    fields: dict[str, Any] = {"num_key_value_heads": heads, "head_dim": hidden // heads} | other
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        **fields,
    )


# Architectures by Hugging Face model id, for randomly initialized students.
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
