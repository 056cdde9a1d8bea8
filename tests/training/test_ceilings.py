"""Counts that no noise changes, with today's values as ceilings: what a change makes dearer fails.

Who makes something cheaper lowers its ceiling. XLA's own figures may move with its version.
"""

import dataclasses
import math
import re

import jax
import jax.monitoring
import numpy as np
import pytest

from benchmarks.speed import generation
from benchmarks.speed.pairs import OurStep, Work, student
from kpod_jax.config import defaults
from kpod_jax.evaluation.generation import Sampling, make_steps
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.models.t5_config import T5Config
from kpod_jax.parallel import sharding
from kpod_jax.training import costs, loop
from tests.tools import batch_source
from tests.weighting import tiny

# Logits of all positions would outweigh everything else, as in real students.
VOCABULARY, ROWS, PROMPT, TARGET = 4096, 4, 64, 512
T5 = T5Config(VOCABULARY, 32, 16, 64, 2, 2, 2)
LLAMA = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
)
STUDENTS = {
    # FLOPs and temporary bytes of a step, of a T5 and of a decoder-only model.
    "t5": (T5, 2.82e9, 60e6),
    "llama": (LLAMA, 2.89e9, 54e6),
}
_SHAPE = re.compile(r"\b(?:f32|s32|bf16|pred|s8)\[([\d,]+)\]")


@pytest.fixture(scope="module", autouse=True)
def optimized():
    """As users compile; other tests compile fast instead."""
    key = "jax_disable_most_optimizations"
    before = jax.config.values[key]
    jax.config.update(key, False)
    jax.clear_caches()
    yield
    jax.config.update(key, before)
    jax.clear_caches()


@pytest.fixture(scope="module", params=STUDENTS)
def step(request):
    config, flops, temporary = STUDENTS[request.param]
    step = OurStep(Work(config, ROWS, PROMPT, TARGET))
    return step, step.compiled(), flops, temporary


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


def largest(text):
    """Elements of the largest array of a compiled program."""
    return max((math.prod(map(int, n.split(","))) for n in _SHAPE.findall(text)), default=1)


def test_the_operations_of_a_step(step):
    step, _, flops, _ = step
    with sharding.use(step.mesh):
        arguments = (step.state, step.frozen, step.batch, jax.random.key(0))
        found = costs.flops(step.step.trace(*arguments).jaxpr)
    assert 0.9 * flops < found <= flops


def test_the_memory_of_a_step(step):
    _, compiled, _, temporary = step
    found = compiled.memory_analysis()
    assert 0.5 * temporary < found.temp_size_in_bytes <= temporary
    # The new state takes the old one's place.
    assert found.alias_size_in_bytes > 0.99 * found.output_size_in_bytes


def test_logits_of_all_positions_are_never_there(step):
    _, compiled, _, _ = step
    assert largest(compiled.as_text()) < ROWS * TARGET * VOCABULARY


class Counted:
    """Compilations, and fetches from the device, of what runs inside."""

    def __init__(self, monkeypatch):
        self.compiled, self.fetched = [], 0
        self._get = jax.device_get
        monkeypatch.setattr(jax, "device_get", self._fetch)

    def _fetch(self, tree):
        self.fetched += 1
        return self._get(tree)

    def _listen(self, event, duration_secs, **details):
        if "backend_compile" in event:
            self.compiled.append(details.get("fun_name", ""))

    def __enter__(self):
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_):
        jax.monitoring.unregister_event_duration_listener(self._listen)


def test_a_training_compiles_a_step_a_bucket_and_fetches_once_a_step(tmp_path, monkeypatch):
    data = tiny.random_set(64, seed=0)
    batches = batch_source(data, 8, 0, pad_id=tiny.PAD, decoder_start_id=tiny.PAD, buckets=2)
    config, mesh = defaults.get_config(), one_device()
    config.distill.update({"epochs": 1, "batch_size": 8, "checkpoint_every": 1000})
    params = tiny.student().load(mesh)
    length = loop.plan(config.distill, batches.steps_per_epoch)
    jax.clear_caches()
    with Counted(monkeypatch) as counted:
        loop.train(
            config.distill,
            tiny.student(),
            params,
            batches,
            length,
            objective=loop.Objective(),
            hooks=loop.Hooks(lambda params: {"accuracy": 0.5}),
            recording=loop.Recording(tmp_path),
        )
    shapes = len(batches.shapes)
    assert sum("train_step" in name for name in counted.compiled) == shapes == 2
    assert len(counted.compiled) <= 20
    # A step's metrics come at once, and nothing else does but what the last checkpoint holds.
    assert counted.fetched <= length.total_steps + 1


def test_a_generation_compiles_five_functions_once_and_fetches_once_a_batch(monkeypatch):
    ours = generation.Ours(Work(T5, 4, 16, 24))
    jax.clear_caches()
    with Counted(monkeypatch) as counted:
        ours()
    for name in ("prepare", "start", "fill", "decode", "look"):
        assert any(name in made for made in counted.compiled)
    assert len(counted.compiled) <= 10 and counted.fetched == 1
    with Counted(monkeypatch) as counted:
        ours()
    assert not counted.compiled and counted.fetched == 1


GROUPED = dataclasses.replace(LLAMA, num_attention_heads=4, num_key_value_heads=2)


@pytest.mark.parametrize("config", [T5, GROUPED])
def test_a_decoding_step_turns_and_copies_no_cache(config):
    config = dataclasses.replace(config, vocab_size=64)  # Logits smaller than a cache.
    model, mesh = student(Work(config, 4, 64, 64)), one_device()
    steps = make_steps(model, mesh, 0, 4, 64, Sampling())
    params = model.load(mesh)
    with sharding.use(mesh):
        prepared = steps.prepare(params)
        rows = steps.start(prepared, 64)
        arguments = (prepared, rows, jax.random.key(0), np.int32(4))
        text = steps.decode.lower(*arguments).compile().as_text()
    cache = min(leaf.size for leaf in jax.tree.leaves(rows.cache))
    computations, entry = costs._computations(text)
    # What makes an array as large as a cache, but for what puts a step's keys into one.
    plain = ("get-tuple-element", "parameter", "tuple", "bitcast", "while", "conditional")
    made = [
        (name, shape)
        for computation, instructions in computations.items()
        for name, shape, opcode, _ in instructions
        if computation != entry and "fused_computation" not in computation
        if opcode not in plain and "dynamic-update-slice" not in name and largest(shape) >= cache
    ]
    assert not made
