"""Greedy generation against transformers' own."""

import functools
import pathlib
import re
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from kpod_jax.data.records import Ragged
from kpod_jax.evaluation.generation import Generator, Sampling, make_steps, nucleus
from kpod_jax.models import layout
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.t5 import T5
from kpod_jax.parallel import sharding
from tests.models import test_llama, tiny

LENGTH = 32


def student(module: Any, eos: int = 1) -> Any:
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

    @property
    def prompts(self) -> Ragged:
        return prompts_of(self.arrays)

    def generator(self, module, sizes=(1, 1, 1), length=LENGTH, rows=8, **options):
        mesh = sharding.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
        ours = student(module, self.eos)
        return Generator(ours, mesh, 0, batch_size=rows, max_new_tokens=length, **options)

    def generate(self, module, params, **options):
        return self.generator(module, **options)(params, self.prompts)[:, 0]


def prompts_of(arrays: dict[str, Any]) -> Ragged:
    rows = zip(arrays["input_ids"], arrays["input_mask"], strict=True)
    return Ragged.from_list([ids[mask] for ids, mask in rows], np.int32)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Of Flan-T5's kind; how rows are filled and ended does not depend on it."""
    return make_reference("v1.1", tmp_path_factory.mktemp("reference"))


def make_reference(kind: str, directory: pathlib.Path) -> Reference:
    # transformers generates only where encoder and decoder are of equal depth.
    model = tiny.torch_t5(directory, kind, seed=2, num_layers=2)
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


@pytest.mark.parametrize(("kind", "scan_layers"), [("v1.0", True), ("v1.1", False)])
def test_generations_are_those_of_transformers(tmp_path, kind, scan_layers):
    reference = make_reference(kind, tmp_path)
    module, params = reference.load(scan_layers=scan_layers)
    np.testing.assert_array_equal(reference.generate(module, params), reference.expected)


def on_mesh(module, params, sizes):
    mesh = sharding.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    where = jax.tree.map(lambda leaf: leaf.sharding, tiny.abstract(module, mesh))
    return jax.device_put(params, where)


def test_steps_have_the_logits_of_the_whole_sequence():
    """Also past the largest distance of the relative bias."""
    config = tiny.config("v1.1", relative_attention_max_distance=20)
    module = T5(config, scan_layers=False)
    params, arrays = tiny.init(module), tiny.batch(target=24)
    apply, mask = functools.partial(module.apply, {"params": params}), arrays["input_mask"]

    @jax.jit
    def whole(ids, inputs):
        encoded = apply(ids, mask, method="encode")
        cache = apply(encoded, 30, method="start_cache")
        return apply(encoded, mask, inputs, method="decode"), cache

    @jax.jit
    def step(ids, time, ages, cache):
        return apply(ids, time, ages, mask, cache, method="decode_step")

    expected, cache = whole(arrays["input_ids"], arrays["decoder_input_ids"])

    for position in range(24):
        ids, ages = arrays["decoder_input_ids"][:, position], np.full(len(mask), position)
        hidden, cache = step(ids, position, ages, cache)
        # Sums in another order: JAX 0.12 has one value of 0.2 that is 1.1e-5 off.
        np.testing.assert_allclose(hidden, jnp.asarray(expected)[:, position], atol=3e-5)


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_rows_that_are_refilled_generate_the_same(reference, rows):
    """Rows are fewer than prompts, begin at different times, and go round their rings."""
    module, params = reference.load()
    generator, done = reference.generator(module, rows=rows), []
    again = [i for _ in range(4) for i in range(len(reference.prompts))]
    prompts = Ragged.from_list([reference.prompts[i] for i in again], np.int32)
    found = generator(params, prompts, progress=done.append)[:, 0]
    np.testing.assert_array_equal(found, reference.expected[again])
    assert sum(done) == len(again)
    assert len(done) > 1 or rows == 20


def test_nothing_is_compiled_from_batch_to_batch(reference, caplog):
    module, params = reference.load()
    generator = reference.generator(module, rows=3, buckets=1)
    short = Ragged.from_list([reference.prompts[i] for i in (0, 1)], np.int32)
    generator(params, short)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        generator(params, reference.prompts)
        generator(jax.tree.map(jnp.negative, params), reference.prompts)
    compiled = [r.message for r in caplog.records if "Compiling" in r.message]
    assert not [m for m in compiled if any(name in m for name in generator._steps._fields)]


def test_rows_without_a_question_end_at_once(reference):
    module, params = reference.load()
    prompts = [reference.prompts[i] for i in range(8)]
    prompts[3] = prompts[3][:0]
    found = reference.generator(module)(params, Ragged.from_list(prompts, np.int32))[:, 0]
    assert not found[3].any()
    expected = np.delete(reference.expected, 3, 0)
    np.testing.assert_array_equal(np.delete(found, 3, 0), expected)


def test_samples_depend_on_their_number_alone(reference):
    module, params = reference.load()
    sampling = Sampling(temperature=1.0, seed=3)
    found = reference.generator(module, rows=8, sampling=sampling)(
        params, reference.prompts, samples=3
    )
    again = reference.generator(module, rows=3, sampling=sampling)(
        params, reference.prompts, samples=3
    )
    np.testing.assert_array_equal(found, again)
    assert found.shape == (8, 3, LENGTH)
    assert all(len({tuple(row) for row in of_one}) > 1 for of_one in found)
    other = Sampling(temperature=1.0, seed=4)
    other = reference.generator(module, sampling=other)(params, reference.prompts, samples=3)
    assert (found != other).any()


def read_prompts(monkeypatch, generator):
    """Rows of each encoder pass, from now on."""
    found = []
    fill = generator._steps.fill

    def counted(params, rows, ids, *others):
        found.append(ids.shape[0])
        return fill(params, rows, ids, *others)

    monkeypatch.setattr(generator, "_steps", generator._steps._replace(fill=counted))
    return found


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1, 1)])
def test_samples_of_a_question_share_the_reading_of_it(reference, monkeypatch, sizes):
    module, params = reference.load()
    sampling = Sampling(temperature=1.0, seed=3)
    alone = reference.generator(module, rows=4, sampling=sampling)
    shared = reference.generator(module, sizes, rows=32, sampling=sampling)
    rows = read_prompts(monkeypatch, shared)
    few = prompts_of({k: v[:3] for k, v in reference.arrays.items()})
    expected = alone(params, few, samples=11)
    found = shared(on_mesh(module, params, sizes), few, samples=11)
    np.testing.assert_array_equal(found, expected)
    assert len(rows) > 1 and set(rows) == {-(-3 // sizes[0]) * sizes[0]}  # Of 8 rows.


@pytest.mark.parametrize("options", [{"temperature": 1e-6}, {"temperature": 1.0, "top_p": 1e-6}])
def test_cold_or_narrow_samples_are_greedy(reference, options):
    module, params = reference.load()
    found = reference.generate(module, params, sampling=Sampling(**options))
    np.testing.assert_array_equal(found, reference.expected)


def test_samples_follow_the_models_distribution(reference):
    """The first token of many samples of one prompt."""
    module, params = reference.load()
    one = Ragged.from_list([reference.prompts[0]], np.int32)
    temperature, count = 2.0, 4000
    generator = reference.generator(
        module, rows=256, length=1, sampling=Sampling(temperature=temperature)
    )
    found = np.bincount(generator(params, one, samples=count).reshape(-1), minlength=96)
    arrays = {k: v[:1] for k, v in reference.arrays.items()}
    arrays["decoder_input_ids"] = np.zeros((1, 1), np.int32)
    logits = tiny.logits(module, params, arrays)[0, 0] / temperature
    expected = np.asarray(jax.nn.softmax(logits)) * count
    error = np.sqrt(expected) + 1
    assert (np.abs(found - expected) < 5 * error).all()


@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_the_nucleus_is_that_of_transformers(top_p):
    logits = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32) * 2
    expected = transformers.TopPLogitsWarper(top_p)(torch.zeros(6, 0), torch.tensor(logits))  # pyright: ignore
    np.testing.assert_array_equal(nucleus(jnp.asarray(logits), top_p), expected)


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
    steps = make_steps(student(module), tiny.one_device(), 0, 8, LENGTH, Sampling())
    prepared = steps.prepare(params)
    rows = steps.start(prepared, arrays["input_ids"].shape[1])
    compiled = steps.decode.lower(prepared, rows, jax.random.key(0), np.int32(8)).compile()
    text = compiled.as_text()
    body = re.search(r"\bwhile\(.*?body=%?([\w.\-]+)", text)
    assert body is not None
    lines = text[re.search(rf"^%?{re.escape(body[1])} ", text, re.M).start() :]  # pyright: ignore
    lines = lines[: lines.index("\n}")].splitlines()
    cache, table = f"f32[8,4,{LENGTH},12]", "f32[96,32]"
    assert any(cache in line for line in lines)
    moved = [line for line in lines if re.search(r"= \S+ (copy|transpose)\(", line)]
    assert not [line for line in moved if cache in line or table in line or "f32[32,96]" in line]


@pytest.mark.parametrize("kind", ["llama3", "mistral", "qwen3"])
def test_decoder_only_generations_are_those_of_transformers(tmp_path, kind):
    model = test_llama.torch_model(tmp_path, kind)
    module, params = test_llama.load(tmp_path)
    prompts = prompts_of(test_llama.batch(rows=8))
    start = 5  # The last token of every prompt.
    generator = Generator(
        student(module), tiny.one_device(), start, batch_size=3, max_new_tokens=LENGTH
    )
    for i, row in enumerate(generator(params, prompts)[:, 0]):
        prompt = torch.tensor([[*prompts[i], start]]).long()
        with torch.no_grad():
            expected = model.generate(
                prompt, do_sample=False, max_new_tokens=LENGTH, eos_token_id=1, pad_token_id=0
            )
        expected = expected[0, prompt.shape[1] :].numpy()
        np.testing.assert_array_equal(row[: len(expected)], expected)
        assert not row[len(expected) :].any()
