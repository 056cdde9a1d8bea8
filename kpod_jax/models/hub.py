"""Hugging Face directories: configuration, weights and tokenizer, in and out, tensor by tensor.

A parameter is one tensor there, or, where layers are stacked for `nn.scan`, one a layer; kernels
are transposed, and their heads folded. Only safetensors are read and written.
"""

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax.experimental import multihost_utils

from kpod_jax import files
from kpod_jax.errors import UserError
from kpod_jax.models import layout
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.t5_config import NAMED, T5Config
from kpod_jax.models.t5_names import hf_name, hf_shape
from kpod_jax.models.tensors import INDEX, WEIGHTS, Tensors

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
    path = pathlib.Path(model).expanduser()
    if path.exists():
        return path
    import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(model, allow_patterns=list(names)))
    except Exception as error:  # The hub's client has its own errors, and those of the network.
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"Cannot load the model {model!r}: there is no such directory, and it cannot be had "
            f"from the Hugging Face hub ({reason:.200}). Give a directory with config.json and "
            f"{WEIGHTS}."
        ) from error


def load_config(model: str) -> T5Config:
    """The architecture of a directory, a config.json, a name in `NAMED`, or a model on the hub.

    Raises:
      UserError: it cannot be found, or it is of a family that is not supported.
    """
    if model in NAMED and not pathlib.Path(model).exists():
        return NAMED[model]
    path = find(model, ("config.json",))
    path = path / "config.json" if path.is_dir() else path
    value = files.read_json(path)
    if not isinstance(value, dict) or value.get("model_type") != "t5":
        family = value.get("model_type") if isinstance(value, dict) else None
        raise UserError(
            f"{path}: students of the family {family!r} are not supported. Supported is model_type "
            "'t5': T5 v1.0, T5 v1.1 and Flan-T5."
        )
    try:
        return T5Config.from_json(value)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def check_weights(model: str) -> None:
    """Looks whether a model has weights at all.

    Raises:
      UserError: there are none.
    """
    Tensors(find(model))


def load_params(model: str, abstract: Any, config: T5Config) -> Any:
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
    leaves = {k: v for k, v in layout.flatten(abstract).items() if not layout.is_adapter(k)}
    names = {path: _names(path, leaf) for path, leaf in leaves.items()}
    if "lm_head.weight" not in tensors.names and "lm_head/kernel" in names:
        # transformers 5 writes a head that equals the embedding table only once.
        names["lm_head/kernel"] = ["shared.weight"]
    tensors.check_names({name for found in names.values() for name in found}, config)
    result = {}
    for path, leaf in leaves.items():
        value = np.empty(leaf.shape, leaf.dtype)
        rows = value if layout.is_stacked(path) else value[None]
        for i, name in enumerate(names[path]):
            rows[i] = _from_hf(path, tensors.read(name, path, config), rows.shape[1:])
        result[path] = jax.make_array_from_callback(
            leaf.shape, leaf.sharding, lambda index, value=value: value[index]
        )
    return layout.unflatten(result)


def save_pretrained(
    directory: files.PathLike,
    config: T5Config,
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
    directory = pathlib.Path(directory)
    flat = layout.flatten(params)
    if lora is None and any(map(layout.is_adapter, flat)):
        raise TypeError("the parameters have adapters: save_pretrained needs their LoRAConfig")
    sources = {
        name: (path, i if layout.is_stacked(path) else None)
        for path, leaf in flat.items()
        if not layout.is_adapter(path)
        for i, name in enumerate(_names(path, leaf))
    }
    size = jnp.dtype(dtype).itemsize
    bytes_of = {name: math.prod(hf_shape(p, config)) * size for name, (p, _) in sources.items()}
    shards = _shards(bytes_of, shard_bytes)
    where = {name: file for file, names in shards.items() for name in names}
    writes = jax.process_index() == 0
    for file, names in shards.items():
        tensors = {name: _to_hf(flat, *sources[name], lora).astype(dtype) for name in names}
        if writes:
            with files.replacing(directory / file) as stream:
                stream.write(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    if not writes:
        return
    if len(shards) > 1:
        metadata = {"total_size": sum(bytes_of.values())}
        files.write_json(directory / INDEX, {"metadata": metadata, "weight_map": where})
    for stale in {WEIGHTS, INDEX} - ({WEIGHTS} if len(shards) == 1 else {INDEX}):
        (directory / stale).unlink(missing_ok=True)
    files.write_json(directory / "config.json", config.to_json() | {"dtype": dtype})
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)


def _names(path: str, leaf: Any) -> list[str]:
    """The tensors that make a parameter, one a layer if it is stacked."""
    return [hf_name(path, i) for i in range(leaf.shape[0] if layout.is_stacked(path) else 1)]


def _from_hf(path: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return (tensor.T if path.endswith("/kernel") else tensor).reshape(shape)


def _to_hf(
    flat: dict[str, Any], path: str, layer: int | None, lora: LoRAConfig | None
) -> np.ndarray:
    """A weight as Hugging Face stores it, float32, with its adapter merged in."""

    def fetch(path: str) -> np.ndarray:
        value = flat[path] if layer is None else flat[path][layer]
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            value = multihost_utils.process_allgather(value, tiled=True)
        return np.asarray(value, np.float32)

    array = fetch(path)
    if not path.endswith("/kernel"):
        return array
    prefix = path.removesuffix("kernel")
    if lora is not None and prefix + "lora_a" in flat:
        low, high = fetch(prefix + "lora_a"), fetch(prefix + "lora_b")
        array = array + lora.scale * np.tensordot(low, high, 1)
    outputs = math.prod(array.shape[2 if prefix.endswith("/o/") else 1 :])
    return np.ascontiguousarray(array.reshape(-1, outputs).T)


def _shards(bytes_of: dict[str, int], limit: int) -> dict[str, list[str]]:
    """Names by file, in order, each file of at most `limit` bytes or one tensor."""
    groups: list[list[str]] = [[]]
    room = limit
    for name, size in bytes_of.items():
        if size > room and groups[-1]:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    count = len(groups)
    return {f"model-{i + 1:05}-of-{count:05}.safetensors": names for i, names in enumerate(groups)}
