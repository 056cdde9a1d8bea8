"""Greedy generation against transformers' own, on one device and on many."""

import pathlib
import re
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kpod_jax import sharding
from kpod_jax.generate import Generator, make_generate
from kpod_jax.models import layout
from kpod_jax.models.t5 import T5, LoRAConfig
from tests.models import tiny

LENGTH = 32


def student(module: T5, eos: int = 1) -> Any:
    """As much of a student as a generation needs."""
    tokenizer = types.SimpleNamespace(eos_token_id=eos, pad_token_id=0)
    return types.SimpleNamespace(module=module, config=module.config, tokenizer=tokenizer)


class Reference(NamedTuple):
    """A model's directory, questions, the token that ends, and what transformers generates."""

    directory: pathlib.Path
    arrays: dict[str, Any]
    eos: int
    expected: np.ndarray

    def load(self, **fields: Any) -> tuple[T5, Any]:
        return tiny.load(self.directory, **fields)

    def generate(self, module, params, arrays=None, sizes=(1, 1, 1), length=LENGTH):
        mesh = sharding.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
        placed = sharding.place_batch(arrays or self.arrays, mesh)
        generator = Generator(student(module, self.eos), mesh, length)
        return np.asarray(generator(params, placed["input_ids"], placed["input_mask"]))


@pytest.fixture(scope="module", params=["v1.0", "v1.1"])
def reference(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference")
    # transformers generates only where encoder and decoder are of equal depth.
    model = tiny.torch_t5(directory, request.param, seed=2, num_layers=2)
    arrays = tiny.batch(rows=8, source=24)

    def generate(eos: int) -> np.ndarray:
        ids, mask = (torch.tensor(arrays[key]).long() for key in ("input_ids", "input_mask"))
        options = {"max_new_tokens": LENGTH, "eos_token_id": eos, "decoder_start_token_id": 0}
        with torch.no_grad():
            found = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, **options)
        found = found[:, 1:].numpy()
        return np.pad(found, [(0, 0), (0, LENGTH - found.shape[1])])

    endless = generate(-1)
    assert np.mean([len(set(row)) for row in endless]) > 5  # They can go wrong.
    # Ends some rows early, some late and some never.
    rows_with = [(endless == token).any(axis=1).sum() for token in range(96)]
    eos = int(np.argmin(np.abs(np.array(rows_with) - 4)))
    expected = generate(eos)
    assert 0 < (expected == eos).any(axis=1).sum() < 8
    return Reference(directory, arrays, eos, expected)


@pytest.mark.parametrize("scan_layers", [True, False])
def test_generations_are_those_of_transformers(reference, scan_layers):
    module, params = reference.load(scan_layers=scan_layers)
    np.testing.assert_array_equal(reference.generate(module, params), reference.expected)


def test_a_mesh_generates_what_one_device_does(reference):
    module, params = reference.load()
    mesh = sharding.make_mesh(2, 2, 2)
    where = jax.tree.map(lambda leaf: leaf.sharding, tiny.abstract(module, mesh))
    found = reference.generate(module, jax.device_put(params, where), sizes=(2, 2, 2))
    np.testing.assert_array_equal(found, reference.expected)


def test_steps_have_the_logits_of_the_whole_sequence():
    """Also past the largest distance of the relative bias."""
    config = tiny.config("v1.1", relative_attention_max_distance=12)
    module = T5(config, scan_layers=False)
    params, arrays = tiny.init(module), tiny.batch(target=24)
    variables = {"params": params}
    ids, mask = arrays["input_ids"], arrays["input_mask"]
    encoded = module.apply(variables, ids, mask, method="encode")
    expected = module.apply(variables, encoded, mask, arrays["decoder_input_ids"], method="decode")
    cache = module.apply(variables, encoded, 30, method="start_cache")

    @jax.jit
    def step(ids, position, cache):
        return module.apply(variables, ids, position, mask, cache, method="decode_step")

    for position in range(24):
        hidden, cache = step(arrays["decoder_input_ids"][:, position], position, cache)
        np.testing.assert_allclose(hidden, jnp.asarray(expected)[:, position], atol=1e-5)


def test_rows_without_a_question_end_at_once(reference):
    module, params = reference.load()
    arrays = reference.arrays | {"input_mask": reference.arrays["input_mask"].copy()}
    arrays["input_mask"][3] = False
    found = reference.generate(module, params, arrays)
    assert not found[3].any()
    expected = np.delete(reference.expected, 3, 0)
    np.testing.assert_array_equal(np.delete(found, 3, 0), expected)


def test_bounds_cut_generations_and_leave_their_beginnings(reference):
    module, params = reference.load()
    found = reference.generate(module, params, length=5)
    np.testing.assert_array_equal(found, reference.expected[:, :5])


def test_adapters_take_part(reference):
    module, params = reference.load()
    adapted = module.clone(lora=LoRAConfig(rank=2, targets=("wo",)))
    flat = layout.flatten(tiny.init(adapted)) | layout.flatten(params)
    changed = reference.generate(adapted, layout.unflatten(flat))
    assert (changed != reference.expected).any()
    for path in flat:
        if path.endswith("lora_b"):
            flat[path] = jnp.zeros_like(flat[path])
    found = reference.generate(adapted, layout.unflatten(flat))
    np.testing.assert_array_equal(found, reference.expected)


def test_the_loop_copies_neither_caches_nor_the_head():
    """Caches are updated in place; the compiled loop has no copy of one, nor of the table."""
    module = T5(tiny.config("v1.0"))
    params, arrays = tiny.init(module), tiny.batch(rows=8)
    generation = make_generate(student(module), LENGTH)
    text = generation.lower(params, arrays["input_ids"], arrays["input_mask"]).compile().as_text()
    body = re.search(r"\bwhile\(.*?body=%?([\w.\-]+)", text)
    assert body is not None
    lines = text[re.search(rf"^%?{re.escape(body[1])} ", text, re.M).start() :]  # pyright: ignore
    lines = lines[: lines.index("\n}")].splitlines()
    cache, table = f"f32[8,4,{LENGTH},12]", "f32[96,32]"
    assert any(cache in line for line in lines)
    moved = [line for line in lines if re.search(r"= \S+ (copy|transpose)\(", line)]
    assert not [line for line in moved if cache in line or table in line or "f32[32,96]" in line]
