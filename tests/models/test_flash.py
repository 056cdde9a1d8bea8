"""Flash attention, which a CPU has not: steps are lowered for a GPU all the same."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from kpod_jax.models import layers
from kpod_jax.models.llama import Llama
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.models.t5 import T5
from kpod_jax.models.t5_config import T5Config
from kpod_jax.training.forward import target_losses
from tests.models import tiny

_T5 = T5Config(vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_heads=2, dropout_rate=0.0)
_LLAMA = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
)
# A scanned stack's attention is compiled once: in T5 the encoder's, the decoder's, and across.
_STUDENTS = {"t5": (T5(_T5, jnp.bfloat16, attention="cudnn"), 3)}
_STUDENTS |= {"llama": (Llama(_LLAMA, jnp.bfloat16, attention="cudnn"), 1)}


@pytest.fixture
def cudnn(monkeypatch):
    """As if cuDNN were installed; the compiler's part is not run."""
    where = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(where, lambda: 91000)


def lowered(module: Any, source: int, target: int) -> str:
    params = tiny.abstract(module, tiny.one_device())

    def array(dtype: Any, length: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((4, length), dtype)

    batch = {
        "input_ids": array(jnp.int32, source),
        "input_mask": array(jnp.bool_, source),
        "decoder_input_ids": array(jnp.int32, target),
        "targets": array(jnp.int32, target),
        "supervised": array(jnp.bool_, target),
    }
    step = jax.jit(jax.grad(lambda params, batch: target_losses(module, params, batch).sum()))
    return step.trace(params, batch).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("kind", _STUDENTS)
def test_training_uses_it_forward_and_backward(cudnn, kind):
    module, count = _STUDENTS[kind]
    text = lowered(module, 24, 16)
    assert text.count("@__cudnn$fmha") == 2 * count
    assert text.count("Backward(") == count
    assert "__cudnn" not in lowered(module.clone(attention="xla"), 24, 16)


def test_odd_lengths_are_left_to_xla(cudnn):
    module, _ = _STUDENTS["t5"]
    text = lowered(module, 24, 15)
    assert text.count("@__cudnn$fmha") == 2  # The encoder's.
    assert "__cudnn" not in lowered(_STUDENTS["llama"][0], 24, 15)


@pytest.mark.parametrize(
    ("version", "capability", "dtype", "head", "fits"),
    [
        ("cuda 13", "8.0", "bfloat16", 64, True),
        ("cuda 13", "9.0", "bfloat16", 128, True),
        ("cuda 13", "7.5", "bfloat16", 64, False),
        ("cuda 13", "9.0", "float32", 64, False),
        ("cuda 13", "9.0", "bfloat16", 36, False),
        ("cuda 13", "9.0", "bfloat16", 160, False),
        ("rocm 7", "gfx942", "bfloat16", 64, False),
    ],
)
def test_devices_types_and_heads_that_have_it(monkeypatch, version, capability, dtype, head, fits):
    device = types.SimpleNamespace(compute_capability=capability)
    backend = types.SimpleNamespace(platform_version=version, devices=lambda: [device])
    monkeypatch.setattr(layers, "get_backend", lambda: backend)
    assert layers.flash_attention_fits(dtype, head) is fits
