"""The LLaMA family's configuration, with the keys of Hugging Face's `config.json`.

Covers LLaMA 1 to 3 and SmolLM2 (model_type llama), Mistral, Qwen2 and Qwen2.5 (qwen2), and Qwen3.
They differ only in biases, query and key norms, and the scaling of positions.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from kpod_jax.models import config_values, llama_names, rope
from kpod_jax.models.rope import RopeScaling
from kpod_jax.utils import schema
from kpod_jax.utils.errors import UserError

# Values of keys with which a model is one of this family; null always is one.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
}
_ACTIVATIONS = ("swish",)  # Other names of silu.
_TOKEN_ID = schema.integer(0, (1 << 31) - 1)
_FULL, _SLIDING = "full_attention", "sliding_attention"


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
    rope_scaling: RopeScaling = RopeScaling()  # noqa: RUF009 - it is frozen.
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    sliding_window: int | None = None
    max_position_embeddings: int = 2048
    pad_token_id: int = 0
    eos_token_id: int = 2
    bos_token_id: int = 1

    def __post_init__(self) -> None:
        config_values.check_types(self, "LLaMA")
        if self.model_type not in self.architectures:
            raise UserError(
                f"model_type is {self.model_type!r}; expected one of "
                f"{', '.join(self.architectures)}."
            )
        if self.sliding_window is not None and (
            type(self.sliding_window) is not int or self.sliding_window < 1
        ):
            raise UserError(
                f"LLaMA configuration: sliding_window is {schema.shown(self.sliding_window)}; "
                "expected an integer >= 1 or null."
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
        rope.check_type(self.rope_scaling.rope_type)
        if self.rope_scaling.rope_type == "yarn" and self.rope_theta <= 1:
            raise UserError(
                f"LLaMA configuration: rope_theta is {self.rope_theta}; expected more than 1, "
                "since the scaling is yarn."
            )
        heads = 2 * (self.num_attention_heads + self.num_key_value_heads) * self.head_dim
        layer = self.hidden_size * (heads + 3 * self.intermediate_size)
        embeddings = self.hidden_size * self.vocab_size
        config_values.check_parameters(embeddings + self.num_hidden_layers * layer, "LLaMA")

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
        act = value.get("hidden_act") or cls.hidden_act
        if act not in (cls.hidden_act, *_ACTIVATIONS):
            raise UserError(f"hidden_act is {schema.shown(act)}; expected {cls.hidden_act!r}.")
        for name, neutral in _NEUTRAL.items():
            if (given := value.get(name)) is not None and given not in neutral:
                expected = " or ".join(["null", *map(json.dumps, neutral)])
                raise UserError(f"{name} is {json.dumps(given):.80}; expected {expected}.")
        _set_head_sizes(fields, value, cls)
        for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
            ids = fields.pop(name, None)
            ids = ids if isinstance(ids, list) else [ids]
            # Old checkpoints write -1 where there is no such token.
            if ids and ids[0] is not None and ids[0] != -1:
                schema.check({name: ids[0]}, {name: _TOKEN_ID})
                fields[name] = ids[0]
        fields.setdefault("pad_token_id", fields.get("eos_token_id", cls.eos_token_id))
        if value.get("model_type") in LlamaConfig.architectures:
            fields["sliding_window"] = _window(value)
        fields["rope_theta"], fields["rope_scaling"] = rope.from_json(
            value,
            cls.rope_theta,
            fields.get("max_position_embeddings", cls.max_position_embeddings),
        )
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """Returns a `config.json` that transformers 4 and 5 and `from_json` read the same way."""
        value = dataclasses.asdict(self)
        value["rope_scaling"] = scaling = self.rope_scaling.to_json()
        value["rope_parameters"] = scaling | {"rope_theta": self.rope_theta}
        if scaling["rope_type"] == "default":
            del value["rope_scaling"]
        if self.model_type in _QWEN:
            slides = self.sliding_window is not None
            value["use_sliding_window"] = slides
            value["max_window_layers"] = 0 if slides else self.num_hidden_layers
        value["hidden_act"] = self.hidden_act
        return {"architectures": [self.architectures[self.model_type]], **value}


_QWEN = ("qwen2", "qwen3")


def _set_head_sizes(
    fields: dict[str, Any], value: Mapping[str, Any], cls: type[LlamaConfig]
) -> None:
    """Sets the head sizes that a `config.json` does not give, as transformers does."""
    heads = fields.get("num_attention_heads", cls.num_attention_heads)
    hidden = fields.get("hidden_size", cls.hidden_size)
    fields.setdefault("num_key_value_heads", heads)
    if value.get("model_type") == "qwen3" and "head_dim" not in value:
        fields["head_dim"] = 128
    if "head_dim" in fields or not all(type(n) is int and n > 0 for n in (heads, hidden)):
        return
    if hidden % heads:
        raise UserError(
            f"LLaMA configuration: num_attention_heads={heads} does not divide hidden_size="
            f"{hidden}, and there is no head_dim."
        )
    fields["head_dim"] = hidden // heads


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _window(value: Mapping[str, Any]) -> int | None:
    """Returns the sliding window of all layers, as transformers understands a `config.json`.

    Raises:
      UserError: only some layers have one.
    """
    kind, window = value["model_type"], value.get("sliding_window", 4096)
    given, first = value.get("layer_types"), value.get("max_window_layers")
    if given is not None and not (isinstance(given, list) and all(map(_is_text, given))):
        raise UserError(f"layer_types is {schema.shown(given)}; expected a list of names.")
    if first is not None and type(first) is not int:
        raise UserError(f"max_window_layers is {schema.shown(first)}; expected an integer.")
    if kind == "llama" or (kind in _QWEN and not value.get("use_sliding_window")):
        window = None
    types = set(given or ())
    if kind in _QWEN and window is not None:
        layers = value.get("num_hidden_layers")
        count = layers if type(layers) is int else LlamaConfig.num_hidden_layers
        first = 28 if first is None else first
        types = types or {*([_FULL] if first > 0 else []), *([_SLIDING] if first < count else [])}
        window = None if types == {_FULL} else window
    types = types or {_FULL if window is None else _SLIDING}
    if types != {_FULL if window is None else _SLIDING}:
        raise UserError(
            f"its layers differ in attention (sliding_window={window}, layer_types: "
            f"{', '.join(sorted(types))}), which is not supported. If all sequences are "
            "shorter than the window, it has no effect: remove sliding_window and layer_types, "
            "and set use_sliding_window to false."
        )
    return window


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
