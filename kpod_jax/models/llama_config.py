"""The LLaMA family's configuration, with the keys of Hugging Face's `config.json`.

Covers LLaMA 1 to 3 and SmolLM2 (model_type llama), and the models of `llama_traits`.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from kpod_jax.models import config_values, llama_layer_types, llama_names, rope
from kpod_jax.models.llama_traits import FULL, SLIDING, TRAITS, LayerKind, Traits
from kpod_jax.models.rope import RopeScaling
from kpod_jax.utils import schema
from kpod_jax.utils.errors import UserError

# Values of keys with which a model is one of this family; null always is one.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "mlp_bias": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "use_bidirectional_attention": (False,),
}
_ACTIVATIONS = {"swish": "silu"}  # Other names.
_TOKEN_ID = schema.integer(0, (1 << 31) - 1)
# Fields that only some models have in config.json.
_ONLY = {
    "layer_types": ("smollm3", "gemma3_text", "qwen2", "qwen3"),
    "no_rope_layers": ("smollm3",),
    "partial_rotary_factor": ("phi3",),
    "query_pre_attn_scalar": ("gemma3_text",),
    "rope_local_base_freq": ("gemma3_text",),
}


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
      layer_types: FULL or SLIDING for each layer; (): all layers slide if there is a window.
      no_rope_layers: 1 for each layer with rotary positions, 0 for those without; (): all have.
      partial_rotary_factor: fraction of each head's dimensions that are rotated, the first ones.
      query_pre_attn_scalar: scores are multiplied by its power of -1/2; None: `head_dim`.
      rope_local_base_freq: base of the rotary frequencies in sliding layers; Gemma 3 only.
      max_position_embeddings: maximum sequence length in training.
      pad_token_id: pads sequences.
      eos_token_id: ends sequences.
      bos_token_id: begins sequences, if the tokenizer adds it.
    """

    names: ClassVar[Any] = llama_names
    architectures: ClassVar[Mapping[str, str]] = {
        kind: traits.architecture for kind, traits in TRAITS.items()
    }
    hidden_act: ClassVar[str] = ""  # Of a custom family; empty: that of its traits.

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
    layer_types: tuple[str, ...] = ()
    no_rope_layers: tuple[int, ...] = ()
    partial_rotary_factor: float = 1.0
    query_pre_attn_scalar: float | None = None
    rope_local_base_freq: float = 10000.0
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
        scalar = self.query_pre_attn_scalar
        if scalar is not None and (not schema.is_number(scalar) or scalar <= 0):
            raise UserError(
                f"LLaMA configuration: query_pre_attn_scalar is {schema.shown(scalar)}; expected a "
                "number > 0."
            )
        if self.rotary_dim % 2 or not 0 < self.rotary_dim <= self.head_dim:
            raise UserError(
                f"LLaMA configuration: head_dim={self.head_dim} with partial_rotary_factor="
                f"{self.partial_rotary_factor} rotates {self.rotary_dim} dimensions; expected an "
                "even number."
            )
        llama_layer_types.check(self)
        rope.check_type(self.rope_scaling.rope_type)
        self.rope_scaling.check_size(self.rotary_dim)
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
    def traits(self) -> Traits:
        """The differences from LLaMA; those of LLaMA itself for a custom family."""
        return TRAITS.get(self.model_type, Traits())

    @property
    def biases(self) -> tuple[str, ...]:
        """The attention projections that have a bias."""
        return self.traits.biases or (("q", "k", "v", "o") if self.attention_bias else ())

    @property
    def rotary_dim(self) -> int:
        """The number of dimensions of a head that are rotated."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def attention_scale(self) -> float:
        """The factor of the scores."""
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of each layer."""
        count = self.num_hidden_layers
        types = self.layer_types or (FULL if self.sliding_window is None else SLIDING,) * count
        kinds = []
        for kind, rotates in zip(types, self.no_rope_layers or (1,) * count, strict=True):
            slides = kind == SLIDING
            rope_kind = "local" if slides and self.traits.local_rope else "global"
            window = self.sliding_window if slides else None
            kinds.append(LayerKind(rope_kind if rotates else "none", window))
        return tuple(kinds)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "LlamaConfig":
        """Reads the architecture from `config.json`, ignoring its other keys.

        Raises:
          UserError: the model belongs to another family, or a value is not supported.
        """
        kind = value.get("model_type")
        traits = TRAITS[kind] if kind in tuple(TRAITS) else Traits()
        value = {**traits.defaults, **value}
        fields: dict[str, Any] = {
            field.name: value[field.name]
            for field in dataclasses.fields(cls)
            if value.get(field.name) is not None
        }
        expected, key = cls.hidden_act or traits.activation, traits.activation_key
        act = value.get(key) or expected
        if act != expected and (type(act) is not str or _ACTIVATIONS.get(act) != expected):
            raise UserError(f"{key} is {schema.shown(act)}; expected {expected!r}.")
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
        for name, kinds in _ONLY.items():
            if kind not in kinds:
                fields.pop(name, None)
        if kind in tuple(TRAITS):
            fields |= llama_layer_types.from_json(value)
        if traits.local_rope:
            value, fields["rope_local_base_freq"] = rope.split_local(value)
        fields["partial_rotary_factor"] = rope.partial_factor(value, kind == "phi3")
        fields["rope_theta"], fields["rope_scaling"] = rope.from_json(
            value,
            traits.defaults.get("rope_theta", cls.rope_theta),
            fields.get("max_position_embeddings", cls.max_position_embeddings),
        )
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """Returns a `config.json` that transformers 4 and 5 and `from_json` read the same way."""
        value = dataclasses.asdict(self)
        for name, kinds in _ONLY.items():
            if self.model_type not in kinds or value[name] == ():
                del value[name]
        del value["rope_scaling"]
        value |= rope.to_json(self.rope_scaling, self.rope_theta, self.max_position_embeddings)
        if "partial_rotary_factor" in value:
            value["rope_parameters"]["partial_rotary_factor"] = self.partial_rotary_factor
        if self.traits.local_rope:
            local = {"rope_type": "default", "rope_theta": self.rope_local_base_freq}
            value["rope_parameters"] = {FULL: value["rope_parameters"], SLIDING: local}
        value |= llama_layer_types.to_json(self)
        value[self.traits.activation_key] = self.hidden_act or self.traits.activation
        return {"architectures": [self.architectures[self.model_type]], **value}


def _set_head_sizes(
    fields: dict[str, Any], value: Mapping[str, Any], cls: type[LlamaConfig]
) -> None:
    """Sets the head sizes that a `config.json` does not give, as transformers does."""
    heads = fields.get("num_attention_heads", cls.num_attention_heads)
    hidden = fields.get("hidden_size", cls.hidden_size)
    fields.setdefault("num_key_value_heads", heads)
    if "head_dim" in fields or not all(type(n) is int and n > 0 for n in (heads, hidden)):
        return
    if hidden % heads:
        raise UserError(
            f"LLaMA configuration: num_attention_heads={heads} does not divide hidden_size="
            f"{hidden}, and there is no head_dim."
        )
    fields["head_dim"] = hidden // heads


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
