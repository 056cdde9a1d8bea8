"""Hugging Face's names of T5's weights, and the configuration keys of their shapes.

In parameter paths, `layers_3` is one unrolled layer, and `layers` holds all layers stacked.
"""

_SUBLAYERS = {
    "encoder": {"self_attention": "0.SelfAttention", "mlp": "1.DenseReluDense"},
    "decoder": {
        "self_attention": "0.SelfAttention",
        "cross_attention": "1.EncDecAttention",
        "mlp": "2.DenseReluDense",
    },
}
_HEADS = "num_heads x d_kv"
# The keys of config.json that give the dimensions of each weight in Hugging Face's layout.
_KEYS = {
    "embedding": ("vocab_size", "d_model"),
    "lm_head": ("vocab_size", "d_model"),
    "relative_bias": ("relative_attention_num_buckets", "num_heads"),
    "scale": ("d_model",),
    **dict.fromkeys("qkv", (_HEADS, "d_model")),
    "o": ("d_model", _HEADS),
    **dict.fromkeys(("wi", "wi_0", "wi_1"), ("d_ff", "d_model")),
    "wo": ("d_model", "d_ff"),
}
# Hugging Face's names of the projections, which can have adapters.
PROJECTIONS = {name: name for name in ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")}
EMBEDDING = "shared.weight"
# The keys of config.json that determine which weights exist.
STRUCTURE_KEYS = "num_layers, num_decoder_layers, feed_forward_proj or tie_word_embeddings"
# Copies of the embedding table in some checkpoints.
COPIES = frozenset({"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"})
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def unused(names: set[str]) -> set[str]:
    """Returns weights in some checkpoints that no T5 uses."""
    return names & {_UNUSED}


def hf_name(path: str, layer: int = 0) -> str:
    """Returns a parameter's Hugging Face name; `layer` selects a layer of a stacked parameter."""
    if path == "shared/embedding":
        return EMBEDDING
    if path == "lm_head/kernel":
        return "lm_head.weight"
    stack, part, *rest = path.split("/")
    if part == "relative_bias":
        return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    if part == "final_norm":
        return f"{stack}.final_layer_norm.weight"
    number = int(part.removeprefix("layers_")) if part != "layers" else layer
    sublayer = _SUBLAYERS[stack][rest[0].removesuffix("_norm")]
    if rest[0].endswith("_norm"):
        return f"{stack}.block.{number}.layer.{sublayer[0]}.layer_norm.weight"
    return f"{stack}.block.{number}.layer.{sublayer}.{rest[1]}.weight"


def hf_keys(path: str) -> tuple[str, ...]:
    """Returns each dimension's configuration key, outputs first; "a x b" means a product."""
    parts = path.split("/")
    return _KEYS[parts[-2] if parts[-1] == "kernel" else parts[-1]]
