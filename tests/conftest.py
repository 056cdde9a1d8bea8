"""Fixtures shared by all tests."""

import functools
import os
import pathlib
import tempfile
from typing import Any

import hypothesis
import jax
import pytest

from kpod_jax.config import defaults
from kpod_jax.parallel import sharding

# Tests shard over simulated devices; this must be set before JAX makes its backend.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# Compiling is most of what tests do, and what is compiled runs for an instant: it is hardly
# optimised, and what one test compiled another need not. All of it is for the workers of a session,
# which inherit the environment, and for processes that tests start, too. The quickstart of
# continuous integration is optimised in full.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="kpod_jax_compiled_")  # Removed in the end.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
jax.config.update(
    "jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
)
jax.config.update(
    "jax_persistent_cache_min_compile_time_secs",
    float(os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]),
)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Machines are noisy: a slow example is no failure, and runs are repeatable.
hypothesis.settings.register_profile("kpod", deadline=None, derandomize=True)
hypothesis.settings.load_profile("kpod")

ROOT = pathlib.Path(__file__).resolve().parents[1]
# A student of a few random values, for whole runs: compiling the shipped one's steps takes longer.
TINY_STUDENT = {
    "student.model": "tests/tiny_t5.json",
    "student.init": "random",
    "student.tokenizer": "kpod_jax/assets/tiny_t5",
}
# What tokenising puts around a question and an answer unless a configuration says otherwise.
TEMPLATES: dict[str, Any] = {
    key: defaults.get_config().student[key] for key in ("prompt", "answer_template")
}
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


@pytest.fixture
def here(tmp_path_factory, monkeypatch) -> None:
    """In the repository, as its configurations expect, and on one device, as most programs are."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.getbasetemp() / "tfds"))
    mesh = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", mesh)
