"""The T5 family's configuration, with the keys of Hugging Face's `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from kpod_jax.models import config_values, t5_names
from kpod_jax.utils import schema
from kpod_jax.utils.errors import UserError

# The activation for each of Hugging Face's values of feed_forward_proj.
ACTIVATIONS = {
    "relu": "relu",
    "gated-relu": "relu",
    "gated-gelu": "gelu_new",
    "gated-silu": "silu",
}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """A T5's architecture: v1.0 by default; v1.1, Flan and mT5 are gated and have an untied head.

    Attributes:
      names: names of the weights; see `families.Family`.
      architectures: the transformers class of each model_type.
      vocab_size: V, rows of the embedding table.
      d_model: D, model width.
      d_kv: H, head width; N * H may differ from D.
      d_ff: F, hidden units of the feed-forward layers.
      num_layers: number of encoder layers.
      num_decoder_layers: number of decoder layers.
      num_heads: N.
      relative_attention_num_buckets: number of buckets of the relative position bias.
      relative_attention_max_distance: longer distances share a bucket.
      dropout_rate: rate of all dropout in training.
      layer_norm_epsilon: added to the mean square.
      feed_forward_proj: a key of `ACTIVATIONS`.
      tie_word_embeddings: whether the head is the embedding table, with its input scaled by
        D ** -0.5.
      pad_token_id: pads sequences.
      eos_token_id: ends sequences.
      decoder_start_token_id: the decoder's first input.
      model_type: one of `architectures`.
    """

    names: ClassVar[Any] = t5_names
    architectures: ClassVar[Mapping[str, str]] = {
        "t5": "T5ForConditionalGeneration",
        "mt5": "MT5ForConditionalGeneration",
    }

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int = 0
    model_type: str = "t5"

    def __post_init__(self) -> None:
        config_values.check_types(self, "T5")
        if self.feed_forward_proj not in ACTIVATIONS:
            raise UserError(
                f"T5 configuration: feed_forward_proj is {self.feed_forward_proj!r}; expected one "
                f"of {', '.join(ACTIVATIONS)}."
            )
        if not 0 <= self.dropout_rate < 1:
            raise UserError(
                f"T5 configuration: dropout_rate is {self.dropout_rate!r}; expected 0 <= rate < 1."
            )
        # The encoder's buckets are half of all, and half of these are for single distances.
        buckets = self.relative_attention_num_buckets
        if buckets < 4 or self.relative_attention_max_distance <= buckets // 2:
            raise UserError(
                f"T5 configuration: relative_attention_num_buckets={buckets} and "
                f"relative_attention_max_distance={self.relative_attention_max_distance}; expected "
                "4 buckets at least, and a distance of more than half of them."
            )
        attention = 4 * self.num_heads * self.d_kv
        dense = self.d_ff * (3 if self.gated else 2)
        layers = self.num_layers * (attention + dense)
        layers += self.num_decoder_layers * (2 * attention + dense)
        config_values.check_parameters(self.d_model * (self.vocab_size + layers), "T5")

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layers multiply two projections (v1.1, Flan)."""
        return self.feed_forward_proj.startswith("gated-")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "T5Config":
        """Reads the architecture from `config.json`, ignoring its other keys.

        Raises:
          UserError: the model is not a T5, or a value is not supported.
        """
        if (kind := value.get("model_type")) not in tuple(cls.architectures):
            raise UserError(
                f"model_type is {schema.shown(kind)}; expected one of "
                f"{', '.join(cls.architectures)}."
            )
        if kind == "mt5":  # No mT5 is tied, whatever its file says.
            defaults = {"feed_forward_proj": "gated-gelu", "vocab_size": 250112}
            value = {**defaults, **value, "scale_decoder_outputs": False}
        fields = {
            field.name: value[field.name]
            for field in dataclasses.fields(cls)
            if value.get(field.name) is not None
        }
        fields.setdefault("num_decoder_layers", fields.get("num_layers", cls.num_layers))
        fields.setdefault("decoder_start_token_id", fields.get("pad_token_id", cls.pad_token_id))
        # transformers 5 saves every T5 as tied; scale_decoder_outputs tells which ones really are.
        if "scale_decoder_outputs" in value:
            schema.check(value, {"scale_decoder_outputs": schema.BOOLEAN})
            fields["tie_word_embeddings"] = bool(value["scale_decoder_outputs"])
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """Returns a `config.json` that transformers 4 and 5 and `from_json` read the same way."""
        return {
            "architectures": [self.architectures[self.model_type]],
            "is_encoder_decoder": True,
            **dataclasses.asdict(self),
        }


def _sizes(
    d_model: int, d_ff: int, num_layers: int, num_heads: int, d_kv: int = 64
) -> dict[str, Any]:
    return {
        "d_model": d_model,
        "d_ff": d_ff,
        "d_kv": d_kv,
        "num_layers": num_layers,
        "num_decoder_layers": num_layers,
        "num_heads": num_heads,
    }


_V1_0 = {
    "small": _sizes(512, 2048, 6, 8),
    "base": _sizes(768, 3072, 12, 12),
    "large": _sizes(1024, 4096, 24, 16),
    "3b": _sizes(1024, 16384, 24, 32, 128),
    "11b": _sizes(1024, 65536, 24, 128, 128),
}
_V1_1 = {
    "small": _sizes(512, 1024, 8, 6),
    "base": _sizes(768, 2048, 12, 12),
    "large": _sizes(1024, 2816, 24, 16),
    "xl": _sizes(2048, 5120, 24, 32),
    "xxl": _sizes(4096, 10240, 24, 64),
}
_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

# Architectures by Hugging Face model id, for randomly initialized students.
NAMED: dict[str, T5Config] = {
    **{f"{owner}t5-{k}": T5Config(**v) for owner in ("", "google-t5/") for k, v in _V1_0.items()},
    **{
        f"google/{kind}-{k}": T5Config(**v, **_GATED)
        for kind in ("t5-v1_1", "flan-t5")
        for k, v in _V1_1.items()
    },
}
