"""The fields of GGUF files that are read, and what their values must be."""

from collections.abc import Mapping
from typing import Any

from kpod_jax.utils import schema
from kpod_jax.utils.errors import UserError

_SIZE = schema.integer(1, (1 << 31) - 1)
_COUNT = schema.integer(0, (1 << 32) - 1)  # The largest one stands for a missing token.
_SIZES = schema.either(
    _SIZE,
    schema.Kind(
        "one for each layer",
        lambda value: isinstance(value, list) and bool(value) and all(map(_SIZE.accepts, value)),
    ),
)
_MERGES = schema.list_of(
    schema.Kind("pair", lambda value: isinstance(value, str) and " " in value), "pairs of tokens"
)
_TOKENS = schema.Kind(
    "a list of texts, not empty",
    lambda value: isinstance(value, list) and bool(value) and all(map(schema.TEXT.accepts, value)),
)
_FACTOR = schema.Kind("a number >= 0", lambda value: schema.is_number(value) and value >= 0)
_BYTES = schema.list_of(schema.integer(-128, 255), "bytes")
_FIELDS = {
    "general.architecture": schema.TEXT,
    "general.type": schema.TEXT,
    "split.count": _COUNT,
    "split.tensors.count": _COUNT,
    "tokenizer.chat_template": schema.TEXT,
    "tokenizer.ggml.model": schema.TEXT,
    "tokenizer.ggml.pre": schema.TEXT,
    "tokenizer.ggml.tokens": _TOKENS,
    "tokenizer.ggml.scores": schema.list_of(schema.NUMBER, "finite numbers"),
    "tokenizer.ggml.token_type": schema.list_of(schema.integer(0, 100), "types"),
    "tokenizer.ggml.merges": _MERGES,
    "tokenizer.ggml.precompiled_charsmap": _BYTES,
    **{f"tokenizer.ggml.{name}_token_id": _COUNT for name in ("bos", "eos", "unknown", "padding")},
    **{
        f"tokenizer.ggml.{name}": schema.BOOLEAN
        for name in ("add_bos_token", "add_eos_token", "add_space_prefix")
    },
    "tokenizer.ggml.remove_extra_whitespaces": schema.BOOLEAN,
}
# Fields after the architecture's name.
_ARCHITECTURE = {
    "block_count": _SIZE,
    "context_length": _SIZE,
    "embedding_length": _SIZE,
    "feed_forward_length": _SIZES,
    "attention.head_count": _SIZES,
    "attention.head_count_kv": _SIZES,
    "attention.key_length": _SIZE,
    "attention.value_length": _SIZE,
    "attention.sliding_window": _COUNT,
    "attention.layer_norm_rms_epsilon": schema.POSITIVE,
    "attention.scale": schema.NUMBER,
    "rope.dimension_count": _COUNT,
    "rope.freq_base": schema.POSITIVE,
    "rope.scale_linear": _FACTOR,
    "rope.scaling.type": schema.TEXT,
    "rope.scaling.factor": _FACTOR,
    **{
        f"rope.scaling.{name}": schema.NUMBER
        for name in (
            "attn_factor",
            "original_context_length",
            "yarn_attn_factor",
            "yarn_beta_fast",
            "yarn_beta_slow",
            "yarn_ext_factor",
            "yarn_log_multiplier",
        )
    },
    "expert_count": _COUNT,
    "attn_logit_softcapping": schema.NUMBER,
    "final_logit_softcapping": schema.NUMBER,
    "logit_scale": schema.NUMBER,
    "residual_scale": schema.NUMBER,
    "embedding_scale": schema.NUMBER,
}
# Lists with one value for each token.
_PARALLEL = ("tokenizer.ggml.scores", "tokenizer.ggml.token_type")


def check(fields: Mapping[str, Any], where: object) -> None:
    """Checks the values of the fields that are read.

    Raises:
      UserError: a value is of another kind, or out of range.
    """
    schema.check(fields, _FIELDS, where)
    architecture = fields.get("general.architecture")
    schema.check(
        fields, {f"{architecture}.{key}": _ARCHITECTURE[key] for key in _ARCHITECTURE}, where
    )
    tokens = fields.get("tokenizer.ggml.tokens")
    for key in _PARALLEL:
        if tokens is not None and len(fields.get(key, tokens)) != len(tokens):
            raise UserError(
                f"{where}: {key} has {len(fields[key])} values, but there are {len(tokens)} "
                "tokens. Download or convert it again."
            )
