"""Where arrays live: the mesh, the rules from logical axes to it, and placement.

Modules name the axes of their arrays by meaning ("embed", "heads", "batch", ...); `RULES` say over
which axes of the mesh each of them is split. The same program runs on one device and on many.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kpod_jax.utils.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
Axes = str | tuple[str, ...] | None

# The mesh axes that each logical axis is split over; None keeps it whole. The batch is split over
# `data` and `fsdp`, parameters over `fsdp` (gathered where they are used), and heads, hidden units
# and vocabulary over `tensor`, as Megatron does.
RULES: Mapping[str, Axes] = {
    "batch": ("data", "fsdp"),
    "batch_lookup": "data",  # While vectors are taken from a table that is split over `embed`.
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
    """A mesh of all devices with the axes "data", "fsdp" and "tensor".

    Args:
      data: devices that hold copies of the parameters; -1 takes what the others leave.
      fsdp: devices that parameters and optimiser state are split over; likewise.
      tensor: devices that heads, hidden units and vocabulary are split over; likewise.
      devices: default all devices of all processes.

    Raises:
      UserError: the numbers do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    asked = "mesh.data={}, mesh.fsdp={}, mesh.tensor={}".format(*sizes)
    known = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) > 1 or known < 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"{asked}: expected positive numbers, or one of them -1.")
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // known
    if np.prod(sizes) != len(devices):
        raise UserError(
            f"{asked} do not multiply to the {len(devices)} devices that there are "
            f"({devices[0].platform}). Set one of them to -1, or choose divisors."
        )
    return jax.make_mesh(sizes, MESH_AXES, (AxisType.Auto,) * 3, devices=devices)


@contextlib.contextmanager
def use(mesh: Mesh) -> Iterator[Mesh]:
    """Pins activations to `mesh` in everything that is traced inside the block.

    Enter it around calls of jitted functions; without it they compute the same, but how activations
    are split is left to the compiler, which may gather a whole batch.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())):
        yield mesh


def constrain(array: jax.Array, *axes: str | None) -> jax.Array:
    """Pins a traced array by the logical names of its axes; outside of `use` it does nothing."""
    mesh, rules = jax.sharding.get_abstract_mesh(), nn.get_logical_axis_rules()
    if mesh.empty or not rules:
        return array
    spec = _spec(axes, array.shape, dict(mesh.shape), dict(rules))  # pyright: ignore[reportArgumentType]
    return jax.lax.with_sharding_constraint(array, spec)


def platform() -> str:
    """Of the devices that a step is traced for: those of `use`, else this process's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def on_one_cpu() -> bool:
    """Whether what is traced is for a single CPU device, as far as `use` says."""
    mesh = jax.sharding.get_abstract_mesh()
    return platform() == "cpu" and (mesh.empty or mesh.size == 1)


def rows_of_a_device(rows: int) -> int:
    """How many of a traced batch's rows `constrain` puts on a device; outside of `use` all."""
    mesh, rules = jax.sharding.get_abstract_mesh(), dict(nn.get_logical_axis_rules())
    if mesh.empty or not rules:
        return rows
    spec = _spec(("batch",), (rows,), dict(mesh.shape), rules)  # pyright: ignore[reportArgumentType]
    over = spec[0] or ()
    over = (over,) if isinstance(over, str) else over
    return rows // int(np.prod([mesh.shape[axis] for axis in over]))


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
    """The sharding of every parameter.

    Args:
      boxed: parameters, concrete or abstract, in the boxes of `nn.with_logical_partitioning`; a
        leaf without a box is replicated.
      mesh: from `make_mesh`.

    Returns:
      The same tree, unboxed, of `NamedSharding`. A dimension that the mesh axes do not divide is
      kept whole.
    """

    def sharding(leaf: Any) -> NamedSharding:
        axes = leaf.names if isinstance(leaf, nn.Partitioned) else ()
        shape = nn.meta.unbox(leaf).shape
        return NamedSharding(mesh, _spec(axes, shape, dict(mesh.shape), RULES))

    return jax.tree.map(sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first dimension of a batch's arrays over "data" and "fsdp"."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_parts(mesh: Mesh) -> int:
    """How many parts the rows of a batch are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def host_part(mesh: Mesh) -> tuple[int, int]:
    """Which of how many equal parts of a batch's rows this process's devices hold.

    Where the mesh lays the rows out otherwise, the part is the whole.
    """
    parts = row_parts(mesh)
    where = batch_sharding(mesh).addressable_devices_indices_map((parts,))
    rows = sorted({index[0].start or 0 for index in where.values() if index is not None})
    size = len(rows)
    whole = rows != list(range(rows[0], rows[0] + size)) or rows[0] % size or parts % size
    return (0, 1) if whole else (rows[0] // size, parts // size)


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts a tree of NumPy arrays [rows of this process's `host_part`, ...] on the mesh, by rows.

    Raises:
      UserError: the devices do not divide the rows.
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


def place_whole(tree: Any, mesh: Mesh) -> Any:
    """Puts a tree of NumPy arrays, which every process has in full, on the mesh.

    Rows are split as a batch's are, where the devices divide them; else all have a whole copy.
    """

    def place(array: np.ndarray) -> jax.Array:
        array = np.asarray(array)
        where = whole_sharding(array.shape, mesh)
        return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

    return jax.tree.map(place, tree)


def whole_sharding(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Where `place_whole` puts an array of a shape."""
    parts = row_parts(mesh)
    splits = len(shape) > 0 and shape[0] % parts == 0
    return batch_sharding(mesh) if splits else replicated(mesh)


def check_rows(rows: int, mesh: Mesh) -> None:
    """Looks whether a batch can be placed.

    Raises:
      UserError: the devices do not divide its rows.
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
    """Each dimension's mesh axes: as the rules say, where they divide it and are not taken yet."""
    entries: list[Axes] = []
    taken: set[str] = set()
    for axis, size in zip(axes, shape, strict=False):
        over = (rules[axis] if axis is not None else None) or ()
        over = (over,) if isinstance(over, str) else tuple(over)
        parts = int(np.prod([mesh_shape[name] for name in over]))
        if parts == 1 or size % parts or taken.intersection(over):
            entries.append(None)
        else:
            taken.update(over)
            entries.append(over[0] if len(over) == 1 else over)  # pyright: ignore
    return PartitionSpec(*entries)
