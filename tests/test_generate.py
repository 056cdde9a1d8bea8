"""Greedy generation against transformers'."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kpod_jax import sharding
from kpod_jax.generate import Generator
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.student import Student
from kpod_jax.models.t5 import T5
from tests.models import tiny

NEW = 24
NEVER = 96  # No end: one past the vocabulary.


@pytest.fixture(scope="module", params=["v1.0", "v1.1"])
def model(request, tmp_path_factory):
    """A directory, and transformers' model of it."""
    directory = tmp_path_factory.mktemp("model")
    return directory, tiny.torch_t5(directory, request.param, seed=3)


def one_device():
    return sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])


def student(module: T5, eos_id: int) -> Student:
    tokenizer = types.SimpleNamespace(eos_token_id=eos_id, pad_token_id=0)
    return Student(module, module.config, tokenizer, "", random=True, seed=0)


def torch_generate(model: Any, arrays: dict[str, Any], eos_id: int) -> np.ndarray:
    """[B, NEW], as `Generator` gives them."""
    ids = model.generate(
        input_ids=torch.tensor(arrays["input_ids"]).long(),
        attention_mask=torch.tensor(arrays["input_mask"]).long(),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=eos_id,
        use_cache=False,  # Its cache has as many layers as the encoder, not the decoder.
    )[:, 1:].numpy()
    return np.pad(ids, ((0, 0), (0, NEW - ids.shape[1])))


def end_of_some(ids_BxG: np.ndarray) -> int:
    """A token that ends some rows early, and others late or never."""
    first = {
        token: [list(row).index(token) if token in row else NEW for row in ids_BxG.tolist()]
        for token in set(ids_BxG.flatten().tolist()) - {0}
    }
    spread = {token: max(ends) - min(ends) for token, ends in first.items() if min(ends) > 0}
    return max(spread, key=lambda token: (spread[token], token))


@pytest.mark.parametrize("scan_layers", [True, False])
def test_generations_are_those_of_transformers(model, scan_layers):
    directory, reference = model
    module, params = tiny.load(directory, scan_layers=scan_layers)
    arrays = tiny.batch(rows=6, source=20)
    ids, mask = arrays["input_ids"], arrays["input_mask"]
    unended = torch_generate(reference, arrays, NEVER)
    generate = Generator(student(module, NEVER), one_device(), NEW)
    np.testing.assert_array_equal(generate(params, ids, mask), unended)

    eos_id = end_of_some(unended)
    expected = torch_generate(reference, arrays, eos_id)
    lengths = (expected != 0).sum(axis=1)
    assert lengths.min() < lengths.max()  # Ended rows wait for the others.
    generate = Generator(student(module, eos_id), one_device(), NEW)
    found = np.asarray(generate(params, ids, mask))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)
    # Where all rows have ended, what is left is padding too.
    row = int(lengths.argmin())
    alone = generate(params, ids[row : row + 1], mask[row : row + 1])
    np.testing.assert_array_equal(alone, expected[row : row + 1])


def test_padding_and_neighbours_change_no_generation(model):
    directory, _ = model
    module, params = tiny.load(directory)
    arrays = tiny.batch(rows=4, source=16)
    ids, mask = arrays["input_ids"], arrays["input_mask"]
    generate = Generator(student(module, 1), one_device(), NEW)
    expected = np.asarray(generate(params, ids, mask))
    wider = ((0, 2), (0, 8))
    padded = (jnp.pad(array, wider) for array in (ids, mask))
    found = np.asarray(generate(params, *padded))
    np.testing.assert_array_equal(found[:4], expected)
    assert not found[4:].any()  # A row without a token writes nothing.


def test_batches_of_one_shape_compile_once():
    module = T5(tiny.config("v1.0"))
    params = tiny.init(module)
    mesh = sharding.make_mesh()
    params = jax.device_put(params, sharding.replicated(mesh))
    generate = Generator(student(module, 1), mesh, 4)
    for seed in range(3):
        arrays = tiny.batch(seed, rows=8, source=10)
        batch = {key: arrays[key] for key in ("input_ids", "input_mask")}
        placed = sharding.place_batch(batch, mesh)
        generate(params, placed["input_ids"], placed["input_mask"])
    compiled: Any = generate._generate
    assert compiled._cache_size() == 1


def test_generations_are_the_same_on_a_mesh():
    config = tiny.config("v1.1")
    lora = LoRAConfig(rank=2)
    made = dataclasses.replace(student(T5(config, lora=lora), 1), seed=5)
    arrays = tiny.batch(rows=8, source=10)
    batch = {key: arrays[key] for key in ("input_ids", "input_mask")}
    params = made.load(one_device())
    expected = Generator(made, one_device(), 8)(params, **rename(batch))
    mesh = sharding.make_mesh(2, 2, 2)
    where = jax.tree.map(lambda leaf: leaf.sharding, made.abstract(mesh))
    found = Generator(made, mesh, 8)(
        jax.device_put(params, where), **rename(sharding.place_batch(batch, mesh))
    )
    np.testing.assert_array_equal(found, expected)


def rename(batch: dict[str, Any]) -> dict[str, Any]:
    return {f"{key}_BxS": value for key, value in batch.items()}
