"""Every mesh of eight devices does what one device does."""

import dataclasses
import types
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kpod_jax.data.batches import BatchSource
from kpod_jax.data.records import Ragged
from kpod_jax.evaluation import generation
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.llama import Llama
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.models.student import Student, student_settings
from kpod_jax.models.t5 import T5
from kpod_jax.parallel import sharding
from kpod_jax.schedule import difficulty
from kpod_jax.training import train_step
from kpod_jax.weighting import learn
from kpod_jax.weighting.answerer import Answerer
from kpod_jax.weighting.answerer_batch import make_answerer_batch
from kpod_jax.weighting.generator import Generator
from kpod_jax.weighting.objective import MaskLearner
from tests.tools import batch_source
from tests.weighting import tiny

# data × fsdp × tensor.
MESHES = [(d, f, 8 // d // f) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if d * f <= 8]
SOME = [(1, 8, 1), (2, 2, 2), (1, 2, 4)]
# On which something is trained where tests are to be quick.
QUICK = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (2, 1, 4)]
# Eight devices divide neither the rows of tables nor the heads, and four not LLaMA's keys.
VOCABULARY = 100
T5_CONFIG = dataclasses.replace(tiny.CONFIG, vocab_size=VOCABULARY, num_heads=4, d_kv=4)
LLAMA_CONFIG = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    tie_word_embeddings=True,
    attention_bias=True,
)
# Of projections with heads on either side, of hidden units and of both families.
ADAPTERS = LoRAConfig(rank=2, targets=("q", "o", "wo", "down"))
MODULES: dict[str, Any] = {
    "t5": T5(T5_CONFIG),
    "t5 with adapters": T5(T5_CONFIG, lora=ADAPTERS),
    "llama": Llama(LLAMA_CONFIG),
    # Norms of all heads together.
    "olmo2": Llama(dataclasses.replace(LLAMA_CONFIG, model_type="olmo2")),
    "llama with adapters": Llama(LLAMA_CONFIG, lora=ADAPTERS),
}
# Two batches of 8 rows, the second with 4 rows of padding: some devices have nothing to learn.
DATA = tiny.random_set(12, seed=0)


def make_mesh(*sizes: int) -> jax.sharding.Mesh:
    return sharding.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])


def student(name: str) -> Student:
    tokenizer = types.SimpleNamespace(eos_token_id=tiny.EOS, pad_token_id=tiny.PAD)
    module = MODULES[name]
    return tiny.TinyStudent(
        module, module.config, tokenizer, student_settings("", init="random"), seed=1
    )


def source() -> BatchSource:
    return batch_source(DATA, 8, 0, pad_id=tiny.PAD, decoder_start_id=tiny.PAD, buckets=1)


def parts_of(tree: Any) -> Any:
    """Shapes of what a device has of each array."""
    return jax.tree.map(lambda leaf: leaf.sharding.shard_shape(leaf.shape), tree)


def check_equal(found: Any, expected: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-5, atol=2e-5),
        jax.device_get(found),
        jax.device_get(expected),
    )


def trained(name: str, sizes: tuple[int, int, int], micro_batches: int = 1) -> tuple[Any, Any]:
    """State and metrics after an epoch, and that the state stays where it was born."""
    mesh, of = make_mesh(*sizes), student(name)
    # With Adam's own epsilon a gradient that is noise alone is a step as large as any.
    optimizer = optax.adam(0.01, eps=1e-3)
    step = train_step.make_train_step(
        of.module, optimizer, lambda _: jnp.float32(0.01), micro_batches=micro_batches
    )
    batches, metrics = source(), []
    assert batches.steps_per_epoch == 2
    params, frozen = of.split(of.load(mesh))
    with sharding.use(mesh):
        state = train_step.start_state(params, optimizer)
        where = parts_of(state)
        for number in range(2):
            batch = {key: value for key, value in batches[number].items() if key != "index"}
            placed = sharding.place_batch(batch, mesh)
            state, values = step(state, frozen, placed, jax.random.key(0))
            metrics.append(values)
    assert parts_of(state) == where
    return jax.device_get(state), jax.device_get(metrics)


def check_split(params: Any, mesh: jax.sharding.Mesh) -> None:
    """What `fsdp` and `tensor` divide is divided: of most parameters a device has its part."""
    parts = mesh.shape["fsdp"] * mesh.shape["tensor"]
    leaves = jax.tree.leaves(params)
    whole = sum(leaf.size for leaf in leaves)
    mine = sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in leaves)
    assert mine <= whole * (0.8 if mesh.shape["tensor"] == 8 else 1.4 / parts)


@pytest.mark.parametrize("name", MODULES)
def test_parameters_are_divided(name):
    for sizes in MESHES:
        mesh = make_mesh(*sizes)
        check_split(student(name).abstract(mesh), mesh)


@pytest.fixture(scope="module")
def alone():
    """By name, what one device makes of a student; once for all meshes."""
    found: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name not in found:
            found[name] = trained(name, (1, 1, 1))
        return found[name]

    return of


def pairs(
    names: Sequence[str],
    meshes: Sequence[tuple[int, int, int]],
    quick: Sequence[tuple[int, int, int]],
) -> list[Any]:
    """Each student on each mesh; where tests are to be quick, one student a quick mesh, in turn."""
    chosen = {(names[i % len(names)], sizes) for i, sizes in enumerate(quick)}
    return [
        pytest.param(
            name,
            sizes,
            marks=[] if (name, sizes) in chosen else pytest.mark.slow,
            id="-".join([name, *map(str, sizes)]).replace(" ", "-"),
        )
        for name in names
        for sizes in meshes
    ]


@pytest.mark.parametrize(("name", "sizes"), pairs([*MODULES], MESHES, QUICK))
def test_training(alone, name, sizes):
    """Losses, gradients' norms, parameters and optimiser state."""
    check_equal(trained(name, sizes), alone(name))


def test_training_by_parts_of_a_batch(alone):
    """Of the last batch some parts, and some devices, have less to learn than others."""
    check_equal(trained("llama", (2, 1, 4), micro_batches=2), alone("llama"))


def scored(name: str, sizes: tuple[int, int, int]) -> Ragged:
    mesh, of = make_mesh(*sizes), student(name)
    params = of.load(mesh)
    return difficulty.rationale_losses(of.module, params, source(), DATA, mesh, batch_size=8)


@pytest.mark.parametrize(("name", "sizes"), pairs(["t5", "llama with adapters"], SOME, SOME[1:]))
def test_scoring(name, sizes):
    check_equal(scored(name, sizes).values, scored(name, (1, 1, 1)).values)


def generated(name: str, sizes: tuple[int, int, int]) -> np.ndarray:
    mesh, of = make_mesh(*sizes), student(name)
    generator = generation.Generator(of, mesh, 5, batch_size=8, max_new_tokens=6, buckets=1)
    return generator(of.load(mesh), DATA.questions)


@pytest.mark.parametrize(("name", "sizes"), pairs(["t5", "llama with adapters"], SOME, SOME[1:]))
def test_generation(name, sizes):
    """Of 12 prompts in 8 rows: the last refill is not full."""
    np.testing.assert_array_equal(generated(name, sizes), generated(name, (1, 1, 1)))


@pytest.mark.parametrize("name", ["t5", "llama with adapters"])
def test_generation_splits_parameters_and_cache(name):
    mesh, of = make_mesh(2, 2, 2), student(name)
    steps, params = generation.make_steps(of, mesh, 5, 8, 6, generation.Sampling()), of.load(mesh)
    with sharding.use(mesh):
        prepared = steps.prepare(params)
        rows = steps.start(prepared, 16)
        where = parts_of(rows.cache)
        ids = {"ids": np.full((4, 16), 7, np.int32), "mask": np.ones((4, 16), bool)}
        placed = sharding.place_global(ids, mesh)
        slots = np.arange(4, dtype=np.int32)
        rows = steps.fill(prepared, rows, placed["ids"], placed["mask"], slots, slots, None)
        rows = steps.decode(prepared, rows, jax.random.key(0), np.int32(8))
    check_split(prepared, mesh)
    for array in jax.tree.leaves(rows.cache):  # Four parts of the rows, two of the heads.
        expected = (array.shape[0] // 4, array.shape[1] // 2, *array.shape[2:])
        assert array.sharding.shard_shape(array.shape) == expected
    assert parts_of(rows.cache) == where


def weighed(name: str, sizes: tuple[int, int, int]) -> tuple[Any, Any]:
    """A step of the answerer, and then one of the generator, whose batch is not full."""
    mesh, module = make_mesh(*sizes), MODULES[name]
    if name == "t5":
        answerer = Answerer(module, tiny.MASK, tiny.PAD, tiny.EOS)
    else:
        answerer = Answerer(module, tiny.MASK, tiny.EOS, None, causal=True)
    table = jax.random.normal(jax.random.key(5), (VOCABULARY, 16))
    table = jax.device_put(table, sharding.replicated(mesh))
    learner = MaskLearner(answerer, Generator(16, 2), table, 0.5, mesh=mesh)
    optimizer = optax.adam(0.01, eps=1e-3)
    problems = make_answerer_batch(DATA, tiny.PAD)
    full, part = (learner.take(problems, np.arange(n)) for n in (8, 5))
    params = student(name).load(mesh)
    with sharding.use(mesh):
        fit = learn.make_fit_step(learner, optimizer)
        state = train_step.start_state(params, optimizer)
        where = parts_of(state)
        params, opt_state, loss = fit(
            state["params"], state["opt_state"], {}, full, jax.random.key(1), True
        )
        assert parts_of(params) == where["params"]
        assert parts_of(opt_state) == where["opt_state"]
        of_masks = jax.jit(learner.generator.init)(
            jax.random.key(2), table[np.asarray(part.rationale)], part.rationale_mask
        )["params"]
        step = learn.make_learn_step(learner, optimizer)
        arguments = (params, table, part, jax.random.key(3), 0.5, 1.0)
        of_masks, _, parts = step(of_masks, optimizer.init(of_masks), *arguments)
    return jax.device_get((params, loss)), jax.device_get((of_masks, parts))


@pytest.mark.parametrize(("name", "sizes"), pairs(["t5", "llama"], SOME, SOME[1:2]))
def test_weighting(name, sizes):
    check_equal(weighed(name, sizes), weighed(name, (1, 1, 1)))


@pytest.mark.parametrize("name", MODULES)
def test_every_axis_has_a_rule(name):
    """And every array of two dimensions has names for all of them."""
    module, rules = MODULES[name], sharding.RULES
    ids = np.zeros((1, 4), np.int32)
    boxed = jax.eval_shape(module.init, jax.random.key(0), ids, ids == 0, ids)["params"]
    leaves = jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
    )
    for path, leaf in leaves:
        assert isinstance(leaf, nn.Partitioned), path
        assert len(leaf.names) == leaf.value.ndim, path
        assert set(leaf.names) <= rules.keys(), path
    split = {axis for _, leaf in leaves for axis in leaf.names if rules[axis]}
    assert split == {"vocab", "embed", "heads", "mlp"}


def test_axes_of_rules_are_those_of_the_mesh():
    for axes in sharding.RULES.values():
        assert axes is None or {axes} <= {*sharding.MESH_AXES} or {*axes} <= {*sharding.MESH_AXES}


def test_an_axis_without_a_rule_is_no_guess():
    with sharding.use(make_mesh(2, 2, 2)), pytest.raises(KeyError, match="widht"):
        jax.eval_shape(lambda x: sharding.constrain(x, "batch", "widht"), jnp.ones((8, 4)))
