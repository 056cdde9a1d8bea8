"""Fixtures shared by all tests."""

import os
import pathlib

import hypothesis
import jax
import pytest

# Tests shard over simulated devices; this must be set before JAX makes its backend.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Machines are noisy: a slow example is no failure, and runs are repeatable.
hypothesis.settings.register_profile("kpod", deadline=None, derandomize=True)
hypothesis.settings.load_profile("kpod")

ROOT = pathlib.Path(__file__).resolve().parents[1]
# A config.json of SmolLM2's architecture, made small, for the tiny student's tokenizer.
LLAMA_JSON = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of development data, from KPOD_TEST_DATA or beside the repository."""
    path = pathlib.Path(os.environ.get("KPOD_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"no development data at {path}; set KPOD_TEST_DATA to their folder")
    return path
