"""Greedy generation against transformers' own, on one device and on many."""

import re
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kpod_jax import sharding
from kpod_jax.generate import Generator
from kpod_jax.models import layout
from kpod_jax.models.t5 import T5
from tests.models import tiny

LENGTH = 32


def student(module: T5) -> Any:
    """As much of a student as a generation needs."""
    tokenizer = types.SimpleNamespace(eos_token_id=1, pad_token_id=0)
    return types.SimpleNamespace(module=module, config=module.config, tokenizer=tokenizer)


def generate(module, params, arrays, sizes=(1, 1, 1), length=LENGTH):
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = sharding.make_mesh(*sizes, devices=devices)
    placed = sharding.place_batch(arrays, mesh)
    generator = Generator(student(module), mesh, length)
    return np.asarray(generator(params, placed["input_ids"], placed["input_mask"]))


@pytest.fixture(scope="module", params=["v1.0", "v1.1"])
def reference(request, tmp_path_factory):
    """A model, its questions, and what transformers generates; some rows end early, some never."""
    directory = tmp_path_factory.mktemp("reference")
    model = tiny.torch_t5(directory, request.param)
    arrays = tiny.batch(rows=8)
    # So that EOS comes up, now and then, in a random model.
    with torch.no_grad():
        ids, mask = (torch.tensor(arrays[k]).long() for k in ("input_ids", "input_mask"))
        head = model.lm_head.weight if request.param == "v1.1" else model.shared.weight
        for scale in np.linspace(0.5, 8, 16):
            kept = head[1].clone()
            head[1] *= scale
            expected = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=LENGTH,
                do_sample=False,
                num_beams=1,
                decoder_start_token_id=0,
            )[:, 1:].numpy()
            ended = (expected == 1).any(axis=1)
            if ended.any() and not ended.all():
                break
            head[1] = kept
        else:
            pytest.fail("no row ends")
    model.save_pretrained(directory)
    return directory, arrays, np.pad(expected, [(0, 0), (0, LENGTH - expected.shape[1])])


@pytest.mark.parametrize("scan_layers", [True, False])
def test_generations_are_those_of_transformers(reference, scan_layers):
    directory, arrays, expected = reference
    module, params = tiny.load(directory, scan_layers=scan_layers)
    np.testing.assert_array_equal(generate(module, params, arrays), expected)


def test_a_mesh_generates_what_one_device_does(reference):
    directory, arrays, expected = reference
    module, params = tiny.load(directory)
    mesh = sharding.make_mesh(2, 2, 2)
    where = jax.tree.map(lambda leaf: leaf.sharding, tiny.abstract(module, mesh))
    found = generate(module, jax.device_put(params, where), arrays, (2, 2, 2))
    np.testing.assert_array_equal(found, expected)


def test_steps_have_the_logits_of_the_whole_sequence():
    """Also past the largest distance of the relative bias."""
    config = tiny.config("v1.1", relative_attention_max_distance=12)
    module = T5(config, scan_layers=False)
    params, arrays = tiny.init(module), tiny.batch(target=24)
    variables = {"params": params}
    ids, mask = arrays["input_ids"], arrays["input_mask"]
    encoded = module.apply(variables, ids, mask, method="encode")
    expected = module.apply(
        variables, encoded, mask, arrays["decoder_input_ids"], method="decode"
    )
    cache = module.apply(variables, encoded, 30, method="start_cache")

    @jax.jit
    def step(ids, position, cache):
        return module.apply(variables, ids, position, mask, cache, method="decode_step")

    for position in range(24):
        hidden, cache = step(arrays["decoder_input_ids"][:, position], position, cache)
        np.testing.assert_allclose(hidden, jnp.asarray(expected)[:, position], atol=1e-5)


def test_rows_without_a_question_end_at_once(reference):
    directory, arrays, expected = reference
    module, params = tiny.load(directory)
    arrays = {k: v.copy() for k, v in arrays.items()}
    arrays["input_mask"][3] = False
    found = generate(module, params, arrays)
    assert not found[3].any()
    np.testing.assert_array_equal(np.delete(found, 3, 0), np.delete(expected, 3, 0))


def test_bounds_cut_generations_and_leave_their_beginnings(reference):
    directory, arrays, expected = reference
    module, params = tiny.load(directory)
    found = generate(module, params, arrays, length=5)
    np.testing.assert_array_equal(found, expected[:, :5])


def test_adapters_take_part(reference):
    from kpod_jax.models.t5 import LoRAConfig

    directory, arrays, expected = reference
    module, params = tiny.load(directory)
    adapted = module.clone(lora=LoRAConfig(rank=2, targets=("wo",)))
    flat = layout.flatten(tiny.init(adapted)) | layout.flatten(params)
    changed = generate(adapted, layout.unflatten(flat), arrays)
    assert (changed != expected).any()
    for path in flat:
        if path.endswith("lora_b"):
            flat[path] = jnp.zeros_like(flat[path])
    np.testing.assert_array_equal(generate(adapted, layout.unflatten(flat), arrays), expected)


def test_the_loop_copies_neither_caches_nor_the_head():
    """Caches are updated in place; the compiled loop has no copy of one, nor of the table."""
    module = T5(tiny.config("v1.0"))
    params, arrays = tiny.init(module), tiny.batch(rows=8)
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    generator = Generator(student(module), mesh, LENGTH)
    text = generator.lower(params, arrays["input_ids"], arrays["input_mask"]).compile().as_text()
    body = re.search(r"\bwhile\(.*?body=%?([\w.\-]+)", text)
    assert body is not None
    lines = text[re.search(rf"^%?{re.escape(body[1])} ", text, re.M).start() :]  # pyright: ignore
    lines = lines[: lines.index("\n}")].splitlines()
    cache, table = f"f32[8,4,{LENGTH},12]", "f32[96,32]"
    assert any(cache in line for line in lines)
    moved = [line for line in lines if re.search(r"= \S+ (copy|transpose)\(", line)]
    assert not [line for line in moved if cache in line or table in line or "f32[32,96]" in line]
