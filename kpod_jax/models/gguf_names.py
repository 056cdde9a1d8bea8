"""How GGUF files name and store the weights of each architecture."""

import re

# The value of model_type in config.json of each architecture.
MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "olmo2": "olmo2",
    "smollm3": "smollm3",
    "phi3": "phi3",
    "gemma3": "gemma3_text",
}
# These interleave the rows of queries and keys: dimensions 2i and 2i + 1 form a rotary pair.
INTERLEAVED = ("llama", "smollm3")
# These add 1 to the scales of norms, which the model adds by itself.
OFFSET_NORMS = ("gemma3",)
# Divisors of rotary frequencies: not parameters, but the result of a scaling.
ROPE_DIVISORS = "rope_freqs.weight"
ROPE_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_AFTER = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OTHER_NAMES = {
    "olmo2": _AFTER,
    "gemma3": _AFTER | {"ffn_norm": "pre_feedforward_layernorm"},
    "phi3": {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
}


def hf_name(name: str, architecture: str) -> str:
    """Converts blk.3.attn_q.weight to model.layers.3.self_attn.q_proj.weight."""
    names = _NAMES | _OTHER_NAMES.get(architecture, {})
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in names:
        return name
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{names[match[2]]}.{match[3]}"
