"""Tiny T5s, of transformers and of ours."""

import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from kpod_jax.models import hub
from kpod_jax.models.t5 import T5
from kpod_jax.models.t5_config import T5Config
from kpod_jax.parallel import sharding

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "d_model": 32,
    "d_kv": 12,  # Heads do not add up to the width.
    "d_ff": 48,
    "num_layers": 1,
    "num_decoder_layers": 2,
    "num_heads": 4,
}
KINDS: dict[str, dict[str, Any]] = {
    "v1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": {"model_type": "mt5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


def torch_t5(directory: pathlib.Path, kind: str, seed: int = 0, **sizes: int) -> Any:
    """A random T5 of transformers, saved to `directory`; all but v1.0 have their own head."""
    torch.manual_seed(seed)
    name = "MT5" if kind == "mt5" else "T5"
    config = getattr(transformers, f"{name}Config").from_dict(SIZES | KINDS[kind] | sizes)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    if kind != "v1.0":
        head = torch.nn.Parameter(torch.randn(config.vocab_size, config.d_model) * 0.3)
        model.lm_head.weight = head
    # Norms and biases of random models are all alike; make mistakes in them visible.
    for name, weight in model.named_parameters():
        if "layer_norm" in name:
            weight.data.add_(torch.randn_like(weight) * 0.2)
        if "relative_attention_bias" in name:
            weight.data.mul_(5)
        # Else a tied head writes the token again that went in.
        if name == "decoder.final_layer_norm.weight":
            weight.data.copy_(torch.randn_like(weight))
    model.save_pretrained(directory)
    return model


def load(directory: Any, **fields: Any) -> tuple[T5, Any]:
    """Our module and its parameters, of a directory of Hugging Face's format."""
    config = hub.load_config(str(directory))
    assert isinstance(config, T5Config)
    module = T5(config, **fields)
    return module, hub.load_params(str(directory), abstract(module, one_device()), config)


def one_device() -> jax.sharding.Mesh:
    """A mesh of one device."""
    return sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


def mesh_of(kind: str, platform: str) -> jax.sharding.AbstractMesh:
    """A mesh of one device that need not be here."""
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=platform)
    axes = (jax.sharding.AxisType.Auto,) * 3
    return jax.sharding.AbstractMesh((1, 1, 1), sharding.MESH_AXES, axes, abstract_device=device)


def abstract(module: Any, mesh: jax.sharding.Mesh) -> Any:
    """Shapes and shardings of a module's parameters."""
    ids = np.zeros((1, 4), np.int32)
    boxed = jax.eval_shape(module.init, jax.random.key(0), ids, ids == 0, ids)["params"]
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        nn.unbox(boxed),
        sharding.param_shardings(boxed, mesh),
    )


def init(module: T5, seed: int = 0) -> Any:
    """Random parameters, without the compilation of `module.init`."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        std = 1.0 if "embedding" in name or "bias" in name else 0.2
        mean = 1.0 if "scale" in name else 0.0
        return jnp.asarray(mean + std * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract(module, one_device()))


def batch(seed: int = 0, rows: int = 4, source: int = 40, target: int = 21) -> dict[str, Any]:
    """Random ids, with padding at the end of each question but the first."""
    rng = np.random.default_rng(seed)
    lengths = np.append(source, rng.integers(3, source, rows - 1))
    mask = np.arange(source) < lengths[:, None]
    return {
        "input_ids": np.where(mask, rng.integers(2, 96, (rows, source)), 0).astype(np.int32),
        "input_mask": mask,
        "decoder_input_ids": rng.integers(2, 96, (rows, target)).astype(np.int32),
    }


def logits(module: Any, params: Any, arrays: dict[str, Any]) -> np.ndarray:
    """[B, U, V]."""

    @jax.jit
    def run(params: Any, arrays: dict[str, Any]) -> Any:
        ids, mask = arrays["input_ids"], arrays["input_mask"]
        hidden = module.apply({"params": params}, ids, mask, arrays["decoder_input_ids"])
        return module.apply({"params": params}, hidden, method="logits")

    return np.asarray(run(params, arrays))


def torch_logits(model: Any, arrays: dict[str, Any]) -> np.ndarray:
    """The same of transformers."""
    with torch.no_grad():
        result = model(
            input_ids=torch.tensor(arrays["input_ids"]).long(),
            attention_mask=torch.tensor(arrays["input_mask"]).long(),
            decoder_input_ids=torch.tensor(arrays["decoder_input_ids"]).long(),
        )
    return result.logits.float().numpy()


def config(kind: str, **sizes: Any) -> T5Config:
    """Our configuration of the tiny T5."""
    return T5Config(**(SIZES | KINDS[kind] | sizes))
