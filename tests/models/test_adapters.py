"""Adapters in PEFT's format, against PEFT itself."""

import json

import jax
import numpy as np
import peft
import pytest
import torch

from kpod_jax.models import layout
from kpod_jax.models.adapters import save_adapter
from kpod_jax.models.layers import LoRAConfig
from tests.models import test_llama, tiny

TARGETS = {"v1.1": ("q", "o", "wi_0", "wo"), "qwen2": ("q", "k", "v", "o", "gate", "up", "down")}


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("kind", list(TARGETS))
def test_peft_computes_what_we_do(tmp_path, kind, scan_layers):
    lora = LoRAConfig(rank=3, alpha=12.0, targets=TARGETS[kind])
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    if kind == "v1.1":
        model, arrays = tiny.torch_t5(base, kind), tiny.batch()
        module, params = tiny.load(base, scan_layers=scan_layers)
        torch_logits = tiny.torch_logits
    else:
        model, arrays = test_llama.torch_model(base, kind), test_llama.batch()
        module, params = test_llama.load(base, scan_layers=scan_layers)
        torch_logits = test_llama.torch_logits
    plain = tiny.logits(module, params, arrays)
    adapted = module.clone(lora=lora)
    rng = np.random.default_rng(0)
    shapes = layout.flatten(tiny.abstract(adapted, tiny.one_device()))
    random = {
        path: np.asarray(rng.normal(size=leaf.shape) * 0.1, np.float32)
        for path, leaf in shapes.items()
        if layout.is_adapter(path)
    }
    params = layout.combine(params, layout.unflatten(random))
    expected = tiny.logits(adapted, params, arrays)
    assert np.abs(expected - plain).max() > 0.1

    save_adapter(adapter, module.config, params, lora, base_model=str(base))
    loaded = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
    lora_weights = [p for n, p in loaded.named_parameters() if "lora_" in n]
    stacked = [leaf.shape[0] if layout.is_stacked(p) else 1 for p, leaf in random.items()]
    assert len(lora_weights) == sum(stacked)
    with torch.no_grad():
        found = torch_logits(loaded, arrays)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    merged = tiny.logits(module, layout.merge(params, lora), arrays)
    np.testing.assert_allclose(merged, expected, atol=1e-4)


def test_a_frozen_base_stays_out(tmp_path):
    module = tiny.T5(tiny.config("v1.1"), lora=LoRAConfig(rank=2))
    params = tiny.init(module)
    assert module.lora is not None
    save_adapter(tmp_path, module.config, jax.device_get(params), module.lora, base_model="a/b")
    value = json.loads((tmp_path / "adapter_config.json").read_text())
    assert value["base_model_name_or_path"] == "a/b"
    assert (value["r"], value["lora_alpha"]) == (2, 16.0)
    assert value["target_modules"] == ["q", "v"]
    size = sum(2 * (32 + 48) * 4 for _ in range(5)) * 2  # 5 attentions of width 32, 48 for heads.
    assert size < (tmp_path / "adapter_model.safetensors").stat().st_size < size + 4000
