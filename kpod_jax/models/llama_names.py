"""How Hugging Face names the LLaMA family's weights, and which sizes shape them.

In parameter paths, `layers_3` is a layer written out and `layers` all of them stacked.
"""

_QUERIES, _KEYS_VALUES = "num_attention_heads x head_dim", "num_key_value_heads x head_dim"
_MODULES = {
    "self_attention": "self_attn",
    "self_attention_norm": "input_layernorm",
    "mlp": "mlp",
    "mlp_norm": "post_attention_layernorm",
}
# What Hugging Face calls the projections, which adapters can be put on.
PROJECTIONS = {name: f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
# The keys of config.json that make the dimensions of a weight, as Hugging Face stores it.
_KEYS = {
    "q": (_QUERIES, "hidden_size"),
    "k": (_KEYS_VALUES, "hidden_size"),
    "v": (_KEYS_VALUES, "hidden_size"),
    "o": ("hidden_size", _QUERIES),
    "gate": ("intermediate_size", "hidden_size"),
    "up": ("intermediate_size", "hidden_size"),
    "down": ("hidden_size", "intermediate_size"),
}
# The keys of config.json that decide which weights there are.
DECIDING = "num_hidden_layers, model_type, attention_bias or tie_word_embeddings"
EMBEDDING = "model.embed_tokens.weight"
COPIES: frozenset[str] = frozenset()


def unused(names: set[str]) -> set[str]:
    """Weights of old files that are functions of the configuration."""
    return {name for name in names if name.endswith(".rotary_emb.inv_freq")}


def hf_name(path: str, layer: int = 0) -> str:
    """Hugging Face's name of a parameter; of a stacked one, that of its layer `layer`."""
    if path == "shared/embedding":
        return EMBEDDING
    if path == "lm_head/kernel":
        return "lm_head.weight"
    first, *rest = path.split("/")
    if first == "final_norm":
        return "model.norm.weight"
    number = int(first.removeprefix("layers_")) if first != "layers" else layer
    *modules, leaf = rest
    module = _MODULES[modules[0]]
    if len(modules) > 1:
        module += "." + PROJECTIONS.get(modules[1], modules[1])
    return f"model.layers.{number}.{module}.{'bias' if leaf == 'bias' else 'weight'}"


def hf_keys(path: str) -> tuple[str, ...]:
    """The configuration's key of each dimension, outputs first; "a x b" is a product of two."""
    if path in ("shared/embedding", "lm_head/kernel"):
        return "vocab_size", "hidden_size"
    module, leaf = path.split("/")[-2:]
    if leaf == "scale":
        return ("head_dim",) if module in ("q_norm", "k_norm") else ("hidden_size",)
    return _KEYS[module][:1] if leaf == "bias" else _KEYS[module]
