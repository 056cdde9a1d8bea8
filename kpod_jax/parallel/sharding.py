"""The device mesh, the rules that map logical axes to it, and the placement of arrays.

Modules give their arrays logical axis names ("embed", "heads", "batch", ...), and `RULES` maps
these to mesh axes. The same program runs on one device and on many.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kpod_jax.utils.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
Axes = str | tuple[str, ...] | None

# The mesh axes that each logical axis is split over; None keeps it whole. The batch is split over
# `data` and `fsdp`; parameters over `fsdp`, gathered when used; and heads, hidden units and
# vocabulary over `tensor`, as in Megatron.
RULES: Mapping[str, Axes] = {
    "batch": ("data", "fsdp"),
    "batch_lookup": "data",  # During lookup in a table that is split over `embed`.
    "length": None,
    "embed_activation": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv": None,
    "mlp": "tensor",
    "layers": None,
    "buckets": None,
    "lora": None,
}


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Creates a mesh of the devices with the axes "data", "fsdp" and "tensor".

    One of the sizes may be -1, which stands for all remaining devices. Of several TPU slices, each
    holds an equal part of "data", so that only gradients go through the slower network between
    slices.

    Args:
      data: number of replicas of the parameters; a multiple of the number of TPU slices.
      fsdp: number of devices that parameters and optimizer state are split over.
      tensor: number of devices that heads, hidden units and vocabulary are split over.
      devices: all devices of all processes by default.

    Raises:
      UserError: the product of the sizes is not the number of devices, or `data` cannot be split
        over the slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    settings = "mesh.data={}, mesh.fsdp={}, mesh.tensor={}".format(*sizes)
    fixed = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) > 1 or fixed < 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"{settings}: expected positive numbers; one of them may be -1.")
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if np.prod(sizes) != len(devices):
        raise UserError(
            f"{settings}: expected a product of {len(devices)}, the number of devices "
            f"({devices[0].platform}). Set one of them to -1, or choose divisors."
        )
    axis_types = (AxisType.Auto,) * 3
    if (slices := _num_slices(devices)) == 1:
        return jax.make_mesh(sizes, MESH_AXES, axis_types, devices=devices)
    if sizes[0] % slices:
        raise UserError(
            f"{settings}: the devices form {slices} TPU slices, and only mesh.data can be split "
            f"over slices, so it must be a multiple of {slices}. Set mesh.data={slices} and "
            "mesh.fsdp=-1, for example."
        )
    hybrid = mesh_utils.create_hybrid_device_mesh(
        (sizes[0] // slices, *sizes[1:]),
        (slices, 1, 1),
        devices,
        allow_split_physical_axes=True,  # As `jax.make_mesh` does where it must.
    )
    return Mesh(hybrid, MESH_AXES, axis_types=axis_types)


def _num_slices(devices: Sequence[Any]) -> int:
    """Returns the number of TPU slices; 1 for other devices, which may number their hosts so."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", None) for device in devices})


@contextlib.contextmanager
def use(mesh: Mesh) -> Iterator[Mesh]:
    """Pins the sharding of activations on `mesh` in all functions traced inside the block.

    Call jitted functions inside it. Without it, results are the same, but the compiler chooses how
    to split activations and may gather a whole batch.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())):
        yield mesh


def constrain(array: jax.Array, *axes: str | None) -> jax.Array:
    """Pins the sharding of a traced array by logical axis names; does nothing outside `use`."""
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    if mesh.empty or not rules:
        return array
    spec = _spec(axes, array.shape, dict(mesh.shape), dict(rules))  # pyright: ignore[reportArgumentType]
    return jax.lax.with_sharding_constraint(array, spec)


def platform() -> str:
    """Returns the platform that is traced for: that of `use`, or this process's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def on_one_cpu() -> bool:
    """Returns whether the current trace is for a single CPU device, judging by `use`."""
    mesh = jax.sharding.get_abstract_mesh()
    return platform() == "cpu" and (mesh.empty or mesh.size == 1)


def rows_per_device(rows: int) -> int:
    """Returns how many rows of a traced batch `constrain` puts on a device; all outside `use`."""
    mesh, rules = jax.sharding.get_abstract_mesh(), dict(nn.get_logical_axis_rules())
    if mesh.empty or not rules:
        return rows
    spec = _spec(("batch",), (rows,), dict(mesh.shape), rules)  # pyright: ignore[reportArgumentType]
    over = spec[0] or ()
    over = (over,) if isinstance(over, str) else over
    return rows // int(np.prod([mesh.shape[axis] for axis in over]))


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """Returns the sharding of every parameter.

    Args:
      boxed: parameters, concrete or abstract, in the boxes of `nn.with_logical_partitioning`;
        unboxed leaves are replicated.
      mesh: from `make_mesh`.

    Returns:
      The same tree, unboxed, of `NamedSharding`. Dimensions that their mesh axes do not divide
      evenly are not split.
    """

    def sharding(leaf: Any) -> NamedSharding:
        axes = leaf.names if isinstance(leaf, nn.Partitioned) else ()
        shape = nn.meta.unbox(leaf).shape
        return NamedSharding(mesh, _spec(axes, shape, dict(mesh.shape), RULES))

    return jax.tree.map(sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch's arrays: rows split over "data" and "fsdp"."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_parts(mesh: Mesh) -> int:
    """Returns the number of parts that the rows of a batch are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def host_part(mesh: Mesh) -> tuple[int, int]:
    """Returns this process's part of a batch's rows, as (index, number of equal parts).

    Returns (0, 1), the whole batch, if the mesh does not give each process one contiguous part.
    """
    parts = row_parts(mesh)
    indices = batch_sharding(mesh).addressable_devices_indices_map((parts,))
    rows = sorted({index[0].start or 0 for index in indices.values() if index is not None})
    size = len(rows)
    whole = rows != list(range(rows[0], rows[0] + size)) or rows[0] % size or parts % size
    return (0, 1) if whole else (rows[0] // size, parts // size)


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Places a batch on the mesh, split by rows.

    Args:
      batch: tree of NumPy arrays [rows of this process's `host_part`, ...].
      mesh: from `make_mesh`.

    Raises:
      UserError: the rows cannot be split evenly over the devices.
    """
    sharding = batch_sharding(mesh)
    number, count = host_part(mesh)

    def place(array: np.ndarray) -> jax.Array:
        rows, first = array.shape[0] * count, array.shape[0] * number
        check_rows(rows, mesh)

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            return array[start - first : stop - first]

        return jax.make_array_from_callback((rows, *array.shape[1:]), sharding, part)

    return jax.tree.map(place, batch)


def place_global(tree: Any, mesh: Mesh) -> Any:
    """Places a tree of NumPy arrays, which every process has in full, on the mesh.

    Rows are split like those of a batch if they divide evenly; otherwise the array is replicated.
    """

    def place(array: np.ndarray) -> jax.Array:
        array = np.asarray(array)
        sharding = global_sharding(array.shape, mesh)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree)


def global_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Returns the sharding that `place_global` gives an array of this shape."""
    parts = row_parts(mesh)
    splits = len(shape) > 0 and shape[0] % parts == 0
    return batch_sharding(mesh) if splits else replicated(mesh)


def check_rows(rows: int, mesh: Mesh) -> None:
    """Checks that a batch can be placed.

    Raises:
      UserError: its rows cannot be split evenly over the devices.
    """
    parts = row_parts(mesh)
    if rows % parts:
        raise UserError(
            f"A batch of {rows} rows cannot be split over {parts} devices (mesh.data="
            f"{mesh.shape['data']} times mesh.fsdp={mesh.shape['fsdp']}). Make the batch size "
            f"a multiple of {parts}."
        )


def _spec(
    axes: Sequence[str | None],
    shape: Sequence[int],
    mesh_shape: Mapping[str, int],
    rules: Mapping[str, Axes],
) -> PartitionSpec:
    """Maps dimensions to mesh axes by the rules, if these divide them and are not yet used."""
    entries: list[Axes] = []
    used: set[str] = set()
    for axis, size in zip(axes, shape, strict=False):
        over = (rules[axis] if axis is not None else None) or ()
        over = (over,) if isinstance(over, str) else tuple(over)
        parts = int(np.prod([mesh_shape[name] for name in over]))
        if parts == 1 or size % parts or used.intersection(over):
            entries.append(None)
        else:
            used.update(over)
            entries.append(over[0] if len(over) == 1 else over)  # pyright: ignore
    return PartitionSpec(*entries)
