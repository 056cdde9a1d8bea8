"""Reads and writes Hugging Face directories: configuration, weights and tokenizer.

A parameter maps to one tensor, or to one per layer if layers are stacked for `nn.scan`. Hugging
Face's kernels are transposed, with heads folded into one dimension. Tensors are processed one at a
time. Weights are written as safetensors, and read from safetensors or GGUF.
"""

import functools
import json
import math
import os
import pathlib
import tempfile
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jax.experimental import multihost_utils

from kpod_jax.models import layout
from kpod_jax.models.families import NAMED, Family, ModelConfig, config_from_json, hf_shape
from kpod_jax.models.gguf_file import GGUFFile
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.t5_config import T5Config
from kpod_jax.models.tensors import INDEX, WEIGHTS, Tensors, fused_parts
from kpod_jax.utils import files, schema
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.gguf_contents import read_gguf

_SHARD_BYTES = 4 << 30
_FILE_SUFFIXES = (".gguf", ".json", ".model", ".npz", ".safetensors")
# Of what transformers reads in a config.json besides the architecture.
_KINDS: dict[str, schema.Kind] = dict.fromkeys(
    ("quantization_config", "auto_map"), schema.either(schema.OBJECT, schema.NULL)
)
_MODEL_FILES = ("*.json", "*.safetensors", "*.model", "README.md")


def find(model: str, names: tuple[str, ...] = _MODEL_FILES) -> pathlib.Path:
    """Returns a model's local path, downloading the model from the hub if necessary.

    Args:
      model: a directory, a file or a hub id.
      names: patterns of the files to download.

    Raises:
      UserError: there is no such directory, and downloading failed.
    """
    path = files.local(model)
    if path.exists():
        return path
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(model, allow_patterns=list(names)))
    except Exception as error:  # The hub client raises many types, network errors included.
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"Cannot load the model {model!r}: there is no such directory, and downloading it from "
            f"the Hugging Face hub failed ({reason:.200}). Give a directory with config.json and "
            f"{WEIGHTS}."
        ) from error


def hub_id(model: str) -> str | None:
    """Returns the name if it is a model's id on the hub rather than a local path, else None."""
    try:
        validate_repo_id(model)
    except HFValidationError:
        return None
    path = files.local(model)
    return None if path.exists() or path.suffix in _FILE_SUFFIXES else model


def license_of(model: str) -> str | None:
    """Returns the license that a model's README.md or GGUF file gives, without downloading it."""
    path = files.local(model)
    if path.suffix == ".gguf" and os.path.isfile(path):
        found = read_gguf(path).fields.get("general.license")
        return found if isinstance(found, str) else None
    readme = path / "README.md"
    if hub_id(model):
        cached = huggingface_hub.try_to_load_from_cache(model, "README.md")
        readme = pathlib.Path(cached) if isinstance(cached, str) else readme
    if not os.path.isfile(readme):  # Unlike pathlib's, for any text.
        return None
    try:
        value = huggingface_hub.metadata_load(readme)
    except Exception:  # YAML errors of many types; a card is only a document.
        return None
    found = value.get("license") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None


def load_config(model: str, own: Family | None = None) -> ModelConfig:
    """Loads a model's architecture.

    Args:
      model: a directory, config.json or GGUF file, a name in `NAMED`, or a hub id.
      own: custom family, in addition to the built-in ones.

    Raises:
      UserError: the model is missing, or its family is not supported.
    """
    if model in NAMED and not pathlib.Path(model).exists():
        return NAMED[model]
    path = find(model, ("config.json",))
    if path.suffix == ".gguf":
        return GGUFFile(path).config
    if path.is_dir():
        _check_complete(path)
        path /= "config.json"
    value = schema.read_object(path, _KINDS)
    try:
        return config_from_json(value, own)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _check_complete(directory: pathlib.Path) -> None:
    """Says what a directory without config.json seems to be."""
    if (directory / "config.json").is_file():
        return
    if (directory / "adapter_config.json").is_file():
        raise UserError(
            f"{directory} is a PEFT adapter, without the model that it adapts. Merge it into that "
            "model (merge_and_unload), save the result and give that directory."
        )
    if found := sorted(directory.glob("*.gguf")):
        raise UserError(f"{directory} has no config.json. Give the GGUF file itself: {found[0]}.")


def check_weights(model: str) -> None:
    """Checks that a model has weights.

    Raises:
      UserError: it has none.
    """
    Tensors(find(model))


def load_params(model: str, abstract: Any, config: ModelConfig) -> Any:
    """Loads parameters tensor by tensor, each directly onto its sharding.

    Args:
      model: a directory or hub id.
      abstract: tree of jax.ShapeDtypeStruct with shardings. Adapters are ignored.
      config: the architecture.

    Returns:
      The tree of arrays, without adapters.

    Raises:
      UserError: there are no weights, or a weight is missing, unexpected, of the wrong shape or not
        finite.
    """
    tensors = Tensors(find(model))
    flat = layout.flatten(abstract)
    leaves = {k: v for k, v in flat.items() if not k.endswith(layout.KERNEL_COMPANIONS)}
    names = {path: _names(path, leaf, config) for path, leaf in leaves.items()}
    if isinstance(config, T5Config) and "lm_head.weight" not in tensors.names:
        # transformers 5 does not write a T5's head that equals the embedding table.
        names |= {"lm_head/kernel": [config.names.EMBEDDING]} if "lm_head/kernel" in names else {}
    tensors.check({name: path for path, group in names.items() for name in group}, config)
    result = {}
    for path, leaf in leaves.items():
        scale_path = layout.companion_path(path, "kernel_scale")
        targets = {key: flat[key] for key in (path, scale_path) if key in flat}
        stacked = layout.is_stacked(path)
        # The host holds one layer of a stack at a time.
        arrays = {key: _zeros(target) for key, target in targets.items()} if stacked else {}
        for i, name in enumerate(names[path]):
            shape = leaf.shape[1:] if stacked else leaf.shape
            values = [_from_hf(path, tensors.read(name), shape)]
            if scale_path in flat:
                values = _quantize(values[0], _num_input_dims(path))
            for (key, target), value in zip(targets.items(), values, strict=True):
                sharding, value = target.sharding, value.astype(target.dtype)
                if stacked:
                    spec = jax.sharding.PartitionSpec(*sharding.spec[1:])
                    layer = _place(value, jax.sharding.NamedSharding(sharding.mesh, spec))
                    arrays[key] = _set_layer(arrays[key], layer, i)
                else:
                    arrays[key] = _place(value, sharding)
        result |= arrays
    return layout.unflatten(result)


def _place(value: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _zeros(leaf: Any) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(stack: jax.Array, layer: jax.Array, index: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, index, 0)


def _num_input_dims(path: str) -> int:
    """Returns a kernel's number of input dimensions: attention outputs have two, heads and size."""
    return 2 if path.endswith("/o/kernel") else 1


def _quantize(kernel: np.ndarray, num_input_dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantizes a kernel [*inputs, *outputs] to int8, with float32 scales [*outputs]."""
    kernel = kernel.astype(np.float32)
    scale = np.abs(kernel).max(axis=tuple(range(num_input_dims))) / 127
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
    """Writes `config.json`, safetensors and the tokenizer's files, in transformers' format.

    Every process must call this; only the first one writes.

    Args:
      directory: created if missing.
      config: the architecture.
      params: unboxed tree, layers stacked or separate.
      tokenizer: a transformers tokenizer, or None.
      dtype: dtype of the stored weights, "float32" or "bfloat16".
      lora: configuration of the adapters in `params`, which are merged into the weights.
      shard_bytes: maximum size of a weight file; larger models are split, with an index.

    Raises:
      UserError: the disk is full or read-only.
    """
    directory = files.as_path(directory)
    flat = layout.flatten(params)
    if lora is None and any(map(layout.is_adapter, flat)):
        raise TypeError("params contains adapters; pass their LoRAConfig as lora=")
    sources = {
        name: (path, i if layout.is_stacked(path) else None)
        for path, leaf in flat.items()
        if not path.endswith(layout.KERNEL_COMPANIONS)
        for i, name in enumerate(_names(path, leaf, config))
    }
    parts = {name: [name] for name in sources}
    for name, group in fused_parts(sources, config).items():
        for part in group:
            del parts[part]
        parts[name] = group
    size = jnp.dtype(dtype).itemsize
    bytes_of = {
        name: sum(math.prod(hf_shape(sources[part][0], config)) for part in group) * size
        for name, group in parts.items()
    }
    split = huggingface_hub.split_state_dict_into_shards_factory(
        bytes_of,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    is_writer = jax.process_index() == 0
    for file, names in split.filename_to_tensors.items():
        tensors = {
            name: np.concatenate([_to_hf(flat, *sources[part], lora) for part in parts[name]])
            for name in names
        }
        tensors = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
        if is_writer:
            with files.atomic_write(directory / file) as stream:
                stream.write(safetensors.numpy.save(tensors, metadata={"format": "pt"}))
    if not is_writer:
        return
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        files.write_json(directory / INDEX, index)
    files.remove(directory / (WEIGHTS if split.is_sharded else INDEX))  # Left by an earlier save.
    files.write_json(directory / "config.json", config.to_json() | {"dtype": dtype})
    if tokenizer is not None:
        save_tokenizer(directory, tokenizer)


def save_tokenizer(directory: files.PathLike, tokenizer: Any) -> None:
    """Writes a tokenizer's files in transformers' format."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        path = pathlib.Path(folder) / "tokenizer_config.json"
        path.write_text(json.dumps(_portable(tokenizer, files.read_json(path)), indent=2))
        files.copy_folder(folder, directory)


def _portable(tokenizer: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Returns a tokenizer_config.json that transformers 4 reads like transformers 5."""
    dropped = ("backend", "is_local", "local_files_only", "name_or_path")
    config = {key: value for key, value in config.items() if key not in dropped}
    if not type(tokenizer).__module__.startswith("transformers.models."):
        # Base classes have other names in transformers 5.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    # In transformers 4, some tokenizers also return segments, which `generate` rejects.
    config["model_input_names"] = ["input_ids", "attention_mask"]
    return config


def _names(path: str, leaf: Any, config: ModelConfig) -> list[str]:
    """Returns the names of a parameter's tensors: one per layer if it is stacked."""
    hf_name = config.names.hf_name
    return [hf_name(path, i) for i in range(leaf.shape[0] if layout.is_stacked(path) else 1)]


def _from_hf(path: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return (tensor.T if path.endswith("/kernel") else tensor).reshape(shape)


def _to_hf(
    flat: dict[str, Any], path: str, layer: int | None, lora: LoRAConfig | None
) -> np.ndarray:
    """Returns a weight in Hugging Face's layout, in float32 and with its adapter merged."""
    array = fetch(flat, path, layer)
    assert array is not None
    if not path.endswith("/kernel"):
        return array.reshape(-1) if path.endswith("/bias") else array
    parts = {
        name: fetch(flat, layout.companion_path(path, name), layer)
        for name in layout.KERNEL_COMPANIONS
    }
    array = np.asarray(layout.merge_kernel(array, parts, lora))  # pyright: ignore
    outputs = math.prod(array.shape[_num_input_dims(path) :])
    return np.ascontiguousarray(array.reshape(-1, outputs).T)


def fetch(flat: dict[str, Any], path: str, layer: int | None) -> np.ndarray | None:
    """Fetches a parameter to this host as float32; None if it does not exist.

    Every process must call this.

    Args:
      flat: parameters by path.
      path: path of the parameter.
      layer: index of the layer of a stacked parameter, or None for all of it.
    """
    if path not in flat:
        return None
    value = flat[path] if layer is None else flat[path][layer]
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        value = multihost_utils.process_allgather(value, tiled=True)
    return np.asarray(value, np.float32)
