"""Hugging Face's names of the LLaMA family's weights, and the configuration keys of their shapes.

In parameter paths, `layers_3` is one unrolled layer, and `layers` holds all layers stacked.
"""

_QUERIES, _KEYS_VALUES = "num_attention_heads x head_dim", "num_key_value_heads x head_dim"
_MODULES = {
    "self_attention": "self_attn",
    "self_attention_norm": "input_layernorm",
    "mlp": "mlp",
    "mlp_norm": "post_attention_layernorm",
    # Of layers with norms after the sublayers.
    "self_attention_post_norm": "post_attention_layernorm",
    "mlp_pre_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
# Norms over all heads together, whose names are those of norms over one.
_NORMS = {"q_all_norm": "q_norm", "k_all_norm": "k_norm"}
# Hugging Face's names of the projections, which can have adapters.
PROJECTIONS = {name: f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
# The keys of config.json that give the dimensions of each weight in Hugging Face's layout.
_KEYS = {
    "q": (_QUERIES, "hidden_size"),
    "k": (_KEYS_VALUES, "hidden_size"),
    "v": (_KEYS_VALUES, "hidden_size"),
    "o": ("hidden_size", _QUERIES),
    "gate": ("intermediate_size", "hidden_size"),
    "up": ("intermediate_size", "hidden_size"),
    "down": ("hidden_size", "intermediate_size"),
}
_NORM_KEYS = {
    **dict.fromkeys(("q_norm", "k_norm"), "head_dim"),
    "q_all_norm": _QUERIES,
    "k_all_norm": _KEYS_VALUES,
}
# Tensors of files whose config.json says so (`Traits.fused`), and their parts.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
# The keys of config.json that determine which weights exist.
STRUCTURE_KEYS = "num_hidden_layers, model_type, attention_bias or tie_word_embeddings"
EMBEDDING = "model.embed_tokens.weight"
COPIES: frozenset[str] = frozenset()


def unused(names: set[str]) -> set[str]:
    """Returns weights of old checkpoints that follow from the configuration."""
    return {name for name in names if name.endswith(".rotary_emb.inv_freq")}


def hf_name(path: str, layer: int = 0) -> str:
    """Returns a parameter's Hugging Face name; `layer` selects a layer of a stacked parameter."""
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
        module += "." + (PROJECTIONS | _NORMS).get(modules[1], modules[1])
    return f"model.layers.{number}.{module}.{'bias' if leaf == 'bias' else 'weight'}"


def hf_keys(path: str) -> tuple[str, ...]:
    """Returns each dimension's configuration key, outputs first; "a x b" means a product."""
    if path in ("shared/embedding", "lm_head/kernel"):
        return "vocab_size", "hidden_size"
    module, leaf = path.split("/")[-2:]
    if leaf == "scale":
        return (_NORM_KEYS.get(module, "hidden_size"),)
    return _KEYS[module][:1] if leaf == "bias" else _KEYS[module]
