"""Hugging Face directories: configuration, weights and tokenizer, in and out, tensor by tensor.

A parameter is one tensor there, or, where layers are stacked for `nn.scan`, one a layer; kernels
are transposed, and their heads folded. Only safetensors are read and written.
"""

import functools
import math
import pathlib
import tempfile
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.experimental import multihost_utils

from kpod_jax.models import layout
from kpod_jax.models.families import NAMED, Family, ModelConfig, config_from_json, hf_shape
from kpod_jax.models.gguf_file import GGUFFile
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.tensors import INDEX, WEIGHTS, Tensors
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

_SHARD_BYTES = 4 << 30
_EVERYTHING = ("*.json", "*.safetensors", "*.model")


def find(model: str, names: tuple[str, ...] = _EVERYTHING) -> pathlib.Path:
    """The directory of a model: itself, or the hub's copy, fetched if need be.

    Args:
      model: a directory, a file, or a model's id on the hub.
      names: patterns of the files to fetch.

    Raises:
      UserError: there is no such directory, and the hub cannot be asked.
    """
    path = files.local(model)
    if path.exists():
        return path
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(model, allow_patterns=list(names)))
    except Exception as error:  # The hub's client has its own errors, and those of the network.
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"Cannot load the model {model!r}: there is no such directory, and it cannot be had "
            f"from the Hugging Face hub ({reason:.200}). Give a directory with config.json and "
            f"{WEIGHTS}."
        ) from error


def load_config(model: str, own: Family | None = None) -> ModelConfig:
    """The architecture of a directory, config.json or GGUF file, a name in `NAMED`, or on the hub.

    Args:
      model: see there.
      own: a family of the user's, besides the package's.

    Raises:
      UserError: it cannot be found, or it is of a family that is not supported.
    """
    if model in NAMED and not pathlib.Path(model).exists():
        return NAMED[model]
    path = find(model, ("config.json",))
    if path.suffix == ".gguf":
        return GGUFFile(path).config
    path = path / "config.json" if path.is_dir() else path
    try:
        return config_from_json(files.read_json(path), own)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def check_weights(model: str) -> None:
    """Looks whether a model has weights at all.

    Raises:
      UserError: there are none.
    """
    Tensors(find(model))


def load_params(model: str, abstract: Any, config: ModelConfig) -> Any:
    """Reads parameters tensor by tensor, each straight onto its sharding.

    Args:
      model: a directory, or a model on the hub.
      abstract: tree of jax.ShapeDtypeStruct with shardings. Adapters in it are left out.
      config: the architecture.

    Returns:
      The tree of arrays, without adapters.

    Raises:
      UserError: no weights, or a weight is missing, unexpected or of another shape.
    """
    tensors = Tensors(find(model))
    flat = layout.flatten(abstract)
    leaves = {k: v for k, v in flat.items() if not k.endswith(layout.BESIDE_KERNEL)}
    names = {path: _names(path, leaf, config) for path, leaf in leaves.items()}
    if "lm_head.weight" not in tensors.names and "lm_head/kernel" in names:
        # transformers 5 writes a head that equals the embedding table only once.
        names["lm_head/kernel"] = [config.names.EMBEDDING]
    tensors.check_names({name for found in names.values() for name in found}, config)
    result = {}
    for path, leaf in leaves.items():
        scale_path = layout.beside(path, "kernel_scale")
        wanted = {key: flat[key] for key in (path, scale_path) if key in flat}
        stacked = layout.is_stacked(path)
        # Of stacked layers one at a time is on the host.
        found = {key: _zeros(of) for key, of in wanted.items()} if stacked else {}
        for i, name in enumerate(names[path]):
            shape = leaf.shape[1:] if stacked else leaf.shape
            values = [_from_hf(path, tensors.read(name, path, config), shape)]
            if scale_path in flat:
                values = _quantize(values[0], _inputs(path))
            for (key, of), value in zip(wanted.items(), values, strict=True):
                where, value = of.sharding, value.astype(of.dtype)
                if stacked:
                    spec = jax.sharding.PartitionSpec(*where.spec[1:])
                    layer = _placed(value, jax.sharding.NamedSharding(where.mesh, spec))
                    found[key] = _put(found[key], layer, i)
                else:
                    found[key] = _placed(value, where)
        result |= found
    return layout.unflatten(result)


def _placed(value: np.ndarray, where: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(value.shape, where, lambda index: value[index])


def _zeros(leaf: Any) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()


@functools.partial(jax.jit, donate_argnums=0)
def _put(stack: jax.Array, layer: jax.Array, place: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, place, 0)


def _inputs(path: str) -> int:
    """How many of a kernel's dimensions are inputs: of an attention's output heads and width."""
    return 2 if path.endswith("/o/kernel") else 1


def _quantize(kernel: np.ndarray, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """[*inputs, *outputs] -> int8 of that shape, and float32 [*outputs] that it is scaled by."""
    kernel = kernel.astype(np.float32)
    scale = np.abs(kernel).max(axis=tuple(range(inputs))) / 127
    return np.rint(kernel / np.where(scale, scale, 1)).astype(np.int8), scale


def save_pretrained(
    directory: files.PathLike,
    config: ModelConfig,
    params: Any,
    tokenizer: Any = None,
    dtype: str = "float32",
    *,
    lora: LoRAConfig | None = None,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes `config.json`, safetensors and the tokenizer's files, as transformers loads them.

    With several processes all must call it; the first one writes.

    Args:
      directory: made if it is missing.
      config: the architecture.
      params: plain tree, layers stacked or written out.
      tokenizer: of transformers, or None.
      dtype: of the stored weights, "float32" or "bfloat16".
      lora: of the adapters in `params`, which are merged into the weights.
      shard_bytes: weights larger than this are split over several files, with an index.

    Raises:
      UserError: the disk is full or read-only.
    """
    directory = files.as_path(directory)
    flat = layout.flatten(params)
    if lora is None and any(map(layout.is_adapter, flat)):
        raise TypeError("the parameters have adapters: save_pretrained needs their LoRAConfig")
    sources = {
        name: (path, i if layout.is_stacked(path) else None)
        for path, leaf in flat.items()
        if not path.endswith(layout.BESIDE_KERNEL)
        for i, name in enumerate(_names(path, leaf, config))
    }
    size = jnp.dtype(dtype).itemsize
    bytes_of = {name: math.prod(hf_shape(p, config)) * size for name, (p, _) in sources.items()}
    split = huggingface_hub.split_state_dict_into_shards_factory(
        bytes_of,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    writes = jax.process_index() == 0
    for file, names in split.filename_to_tensors.items():
        tensors = {name: _to_hf(flat, *sources[name], lora).astype(dtype) for name in names}
        if writes:
            with files.atomic_write(directory / file) as stream:
                stream.write(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    if not writes:
        return
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        files.write_json(directory / INDEX, index)
    files.remove(directory / (WEIGHTS if split.is_sharded else INDEX))  # Perhaps an older one's.
    files.write_json(directory / "config.json", config.to_json() | {"dtype": dtype})
    if tokenizer is not None:
        save_tokenizer(directory, tokenizer)


def save_tokenizer(directory: files.PathLike, tokenizer: Any) -> None:
    """Writes a tokenizer's files, as transformers loads them."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files.copy_folder(folder, directory)


def _names(path: str, leaf: Any, config: ModelConfig) -> list[str]:
    """The tensors that make a parameter, one a layer if it is stacked."""
    hf_name = config.names.hf_name
    return [hf_name(path, i) for i in range(leaf.shape[0] if layout.is_stacked(path) else 1)]


def _from_hf(path: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return (tensor.T if path.endswith("/kernel") else tensor).reshape(shape)


def _to_hf(
    flat: dict[str, Any], path: str, layer: int | None, lora: LoRAConfig | None
) -> np.ndarray:
    """A weight as Hugging Face stores it, float32, with its adapter merged in."""
    array = fetch(flat, path, layer)
    assert array is not None
    if not path.endswith("/kernel"):
        return array.reshape(-1) if path.endswith("/bias") else array
    parts = {name: fetch(flat, layout.beside(path, name), layer) for name in layout.BESIDE_KERNEL}
    array = np.asarray(layout.merged_kernel(array, parts, lora))  # pyright: ignore
    outputs = math.prod(array.shape[_inputs(path) :])
    return np.ascontiguousarray(array.reshape(-1, outputs).T)


def fetch(flat: dict[str, Any], path: str, layer: int | None) -> np.ndarray | None:
    """A parameter (of a stacked one, a layer) on this host as float32; None: there is none.

    With several processes all must call it.
    """
    if path not in flat:
        return None
    value = flat[path] if layer is None else flat[path][layer]
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        value = multihost_utils.process_allgather(value, tiled=True)
    return np.asarray(value, np.float32)
