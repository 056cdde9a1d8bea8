"""Saves LoRA adapters in PEFT's format: the base model's id and the low-rank factors."""

import math
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from kpod_jax.models import hub, layout
from kpod_jax.models.families import ModelConfig
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.t5_config import T5Config
from kpod_jax.utils import files


def save_adapter(
    directory: files.PathLike,
    config: ModelConfig,
    params: Any,
    lora: LoRAConfig,
    *,
    base_model: str | None,
    tokenizer: Any = None,
) -> None:
    """Writes `adapter_config.json`, `adapter_model.safetensors` and the tokenizer's files.

    Every process must call this; only the first one writes.

    Args:
      directory: created if missing.
      config: the base model's architecture.
      params: unboxed tree with adapters, layers stacked or separate; base weights are not saved.
      lora: the adapters' configuration.
      base_model: hub id from which PEFT loads the base model; None: the caller of PEFT loads it.
      tokenizer: a transformers tokenizer, or None.

    Raises:
      UserError: the disk is full or read-only.
    """
    directory = files.as_path(directory)
    flat = layout.flatten(params)
    names = config.names
    tensors = {}
    for path, leaf in flat.items():
        if not path.endswith("/lora_a"):
            continue
        kernel = path.replace("lora_a", "kernel")
        for layer in range(leaf.shape[0]) if layout.is_stacked(path) else [None]:
            low = hub.fetch(flat, path, layer)
            high = hub.fetch(flat, layout.companion_path(kernel, "lora_b"), layer)
            assert low is not None and high is not None
            name = names.hf_name(kernel, layer or 0).removesuffix(".weight")
            # PyTorch puts outputs first and folds heads into one dimension.
            low = np.ascontiguousarray(low.reshape(-1, lora.rank).T)
            high = np.ascontiguousarray(high.reshape(lora.rank, math.prod(high.shape[1:])).T)
            tensors[f"base_model.model.{name}.lora_A.weight"] = low
            tensors[f"base_model.model.{name}.lora_B.weight"] = high
    if jax.process_index():
        return
    with files.atomic_write(directory / "adapter_model.safetensors") as stream:
        stream.write(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    value = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM" if isinstance(config, T5Config) else "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": [names.PROJECTIONS[target] for target in lora.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    files.write_json(directory / "adapter_config.json", value)
    if tokenizer is not None:
        hub.save_tokenizer(directory, tokenizer)
