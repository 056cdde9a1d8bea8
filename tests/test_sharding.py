"""Meshes, rules and placement: the same numbers on any mesh of the 8 simulated devices."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kpod_jax import sharding
from kpod_jax.errors import UserError
from kpod_jax.models import layout
from kpod_jax.models.t5 import T5, LoRAConfig
from tests.models import tiny

PROJECTIONS = ("q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo")


def boxed(module):
    ids = np.zeros((1, 4), np.int32)
    return jax.eval_shape(module.init, jax.random.key(0), ids, ids == 0, ids)["params"]


@pytest.fixture(scope="module")
def unsharded():
    """A module, its parameters, a batch, and the logits of one device."""
    module = T5(tiny.config("v1.1"))
    params, arrays = tiny.init(module), tiny.batch(rows=8, source=12, target=6)
    return module, params, arrays, tiny.logits(module, params, arrays)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_logits_are_the_same_on_every_mesh(unsharded, sizes):
    module, params, arrays, expected = unsharded
    mesh = sharding.make_mesh(*sizes)
    placed = jax.device_put(params, sharding.param_shardings(boxed(module), mesh))
    with sharding.use(mesh):
        found = tiny.logits(module, placed, sharding.place_batch(arrays, mesh))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_parameters_are_split_over_fsdp_and_tensor():
    mesh = sharding.make_mesh(2, 2, 2)
    module = T5(tiny.config("v1.1"), lora=LoRAConfig(rank=2))
    found = layout.flatten(sharding.param_shardings(boxed(module), mesh))
    specs = {path: where.spec for path, where in found.items()}
    assert specs["shared/embedding"] == PartitionSpec("tensor", "fsdp")
    attention = "encoder/layers/self_attention"
    assert specs[f"{attention}/q/kernel"] == PartitionSpec(None, "fsdp", "tensor", None)
    assert specs[f"{attention}/o/kernel"] == PartitionSpec(None, "tensor", None, "fsdp")
    assert specs[f"{attention}/q/lora_b"] == PartitionSpec(None, None, "tensor", None)
    assert specs["encoder/layers/mlp/wi_0/kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert specs["encoder/final_norm/scale"] == PartitionSpec("fsdp")


@pytest.mark.parametrize("kind", ["v1.0", "v1.1"])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_every_logical_axis_has_a_rule(kind, scan_layers):
    lora = LoRAConfig(rank=2, targets=PROJECTIONS)
    tree = boxed(T5(tiny.config(kind), scan_layers=scan_layers, lora=lora))
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))
    assert all(isinstance(leaf, nn.Partitioned) for leaf in leaves)
    assert all(len(leaf.names) == leaf.value.ndim for leaf in leaves)
    names = {name for leaf in leaves for name in leaf.names}
    assert {"vocab", "embed", "heads", "kv", "mlp", "lora"} <= names
    assert names <= {field.name for field in dataclasses.fields(sharding.Rules)}


def test_a_dimension_that_does_not_divide_is_kept_whole():
    mesh = sharding.make_mesh(1, 1, 8)
    module = T5(tiny.config("v1.0"))  # 4 heads, 48 hidden units
    specs = layout.flatten(sharding.param_shardings(boxed(module), mesh))
    assert "tensor" not in specs["encoder/layers/self_attention/q/kernel"].spec
    assert "tensor" in specs["encoder/layers/mlp/wi/kernel"].spec


def test_activations_are_pinned_inside_use_alone():
    mesh = sharding.make_mesh(2, 2, 2)

    def pin(x):
        return sharding.constrain(x * 2, "batch", "length", "heads", "kv")

    x = np.ones((8, 3, 4, 5), np.float32)
    with sharding.use(mesh):
        pinned = jax.jit(pin)(x)
    assert pinned.sharding.is_equivalent_to(
        jax.NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor", None)), 4
    )
    assert len(jax.jit(pin)(x).devices()) == 1


def test_rules_can_be_changed():
    mesh = sharding.make_mesh(2, 2, 2)
    rules = sharding.Rules(embed=None, vocab=("fsdp", "tensor"))
    specs = layout.flatten(sharding.param_shardings(boxed(T5(tiny.config("v1.0"))), mesh, rules))
    assert specs["shared/embedding"].spec == PartitionSpec(("fsdp", "tensor"), None)


def test_mesh_takes_all_devices():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(sharding.make_mesh(2, -1, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, 16, 1), (-1, -1, 1), (0, 1, 1)])
def test_mesh_of_other_sizes_is_refused(sizes):
    with pytest.raises(UserError, match=f"mesh.data={sizes[0]}, mesh.fsdp={sizes[1]}"):
        sharding.make_mesh(*sizes)


def test_batches_are_split_by_rows():
    mesh = sharding.make_mesh(2, 2, 2)
    batch = {"ids": np.arange(24, dtype=np.int32).reshape(8, 3)}
    placed = sharding.place_batch(batch, mesh)
    np.testing.assert_array_equal(placed["ids"], batch["ids"])
    assert {shard.data.shape for shard in placed["ids"].addressable_shards} == {(2, 3)}
    with pytest.raises(UserError, match="batch of 6 rows cannot be split over 4 devices"):
        sharding.place_batch({"ids": batch["ids"][:6]}, mesh)
