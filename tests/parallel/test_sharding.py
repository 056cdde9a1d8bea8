"""Where the parts of arrays lie."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kpod_jax.models import layout
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.t5 import T5
from kpod_jax.parallel import sharding
from kpod_jax.utils.errors import UserError
from tests.models import tiny


def compiled_gradient(module, params, arrays, mesh) -> str:
    """The program of a loss and its gradient on a mesh, as a train step has them."""
    arrays = sharding.place_batch(arrays, mesh)
    where = jax.tree.map(lambda leaf: leaf.sharding, tiny.abstract(module, mesh))
    params = jax.device_put(params, where)

    @functools.partial(jax.jit, out_shardings=(None, where))
    @jax.value_and_grad
    def step(params):
        ids, mask = arrays["input_ids"], arrays["input_mask"]
        hidden = module.apply({"params": params}, ids, mask, arrays["decoder_input_ids"])
        logits = module.apply({"params": params}, hidden, method="logits")
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1))

    with sharding.use(mesh):
        return str(step.lower(params).compile().as_text())


@pytest.mark.parametrize("sizes", [(2, 4, 1), (2, 2, 2)])
def test_no_device_holds_the_activations_of_the_whole_batch(sizes):
    """24 rows over devices are 3 or 6 rows: no array of 24 rows is in the compiled program."""
    module = T5(tiny.config("v1.1"))
    arrays = tiny.batch(rows=24, source=12, target=10)
    text = compiled_gradient(module, tiny.init(module), arrays, sharding.make_mesh(*sizes))
    assert f"f32[{24 // sizes[0] // sizes[1]},12,32]" in text
    # Nor of part of the width, but for rows of `data` as they come from the table.
    assert not re.search(r"f32\[24,1[02],\d+\]", text)


def test_parameters_lie_where_the_rules_say():
    mesh = sharding.make_mesh(2, 2, 2)
    module = T5(tiny.config("v1.1", vocab_size=97, num_heads=3), lora=LoRAConfig(2, targets=("q",)))
    leaves = layout.flatten(tiny.abstract(module, mesh))
    specs = {path: leaf.sharding.spec for path, leaf in leaves.items()}
    assert specs["encoder/layers/mlp/wo/kernel"] == P(None, "tensor", "fsdp")
    # What the mesh does not divide stays whole.
    assert specs["shared/embedding"] == P(None, "fsdp")
    assert specs["encoder/layers/self_attention/q/kernel"] == P(None, "fsdp", None, None)
    assert specs["encoder/layers/self_attention/q/lora_a"] == P(None, "fsdp", None)


def test_leaves_without_names_are_whole_on_every_device():
    mesh = sharding.make_mesh()
    found = sharding.param_shardings({"step": jax.ShapeDtypeStruct((), jnp.int32)}, mesh)
    assert found["step"].is_fully_replicated
    assert sharding.replicated(mesh).is_fully_replicated


def test_the_mesh_takes_what_is_left():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(sharding.make_mesh(2, -1, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 1, 1), (-1, 16, 1)])
def test_a_mesh_that_cannot_be_names_keys_and_devices(sizes):
    with pytest.raises(UserError, match=rf"mesh\.data={sizes[0]}, mesh\.fsdp={sizes[1]}"):
        sharding.make_mesh(*sizes)


def test_batches_are_split_by_rows():
    mesh = sharding.make_mesh(2, 2, 2)
    batch = {"ids": np.arange(24).reshape(8, 3), "index": np.arange(8)}
    placed = sharding.place_batch(batch, mesh)
    assert {shard.data.shape for shard in placed["ids"].addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(placed["ids"], batch["ids"])
    with pytest.raises(UserError, match="6 rows cannot be split over 4 devices"):
        sharding.place_batch({"ids": np.zeros((6, 3))}, mesh)


def test_outside_of_a_mesh_nothing_is_pinned():
    array = jnp.ones((3, 5))
    assert sharding.constrain(array, "batch", "length") is array
    with sharding.use(sharding.make_mesh()):
        pinned = jax.jit(lambda x: sharding.constrain(x, "batch", "length"))(jnp.ones((8, 5)))
    assert pinned.sharding.spec == P(("data", "fsdp"), None) or len(pinned.addressable_shards) == 8
    assert nn.get_logical_axis_rules() == ()
