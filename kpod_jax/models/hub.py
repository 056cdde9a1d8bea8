"""Hugging Face directories: configuration, weights and tokenizer, in and out, tensor by tensor.

A parameter is one tensor there, or, where layers are stacked for `nn.scan`, one a layer; kernels
are transposed, and their heads folded. Only safetensors are read and written.

Letters: in parameter paths, `layers_3` is a layer written out and `layers` all of them stacked.
"""

import pathlib
import re
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors
import safetensors.flax

from kpod_jax import files
from kpod_jax.errors import UserError
from kpod_jax.models.t5_config import NAMED, T5Config

_SUBLAYERS = {
    "encoder": {"self_attention": "0.SelfAttention", "mlp": "1.DenseReluDense"},
    "decoder": {
        "self_attention": "0.SelfAttention",
        "cross_attention": "1.EncDecAttention",
        "mlp": "2.DenseReluDense",
    },
}
# Tensors that repeat others in files written by transformers.
_REPEATED = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
_RANDOM = "Set student.init=random to start from random values"


def find(
    model: str, names: tuple[str, ...] = ("*.json", "*.safetensors", "*.model")
) -> pathlib.Path:
    """The directory of a model: itself, or the hub's copy, fetched if need be.

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
            f"Cannot load the model {model!r}: there is no such directory, and it cannot be had from "
            f"the Hugging Face hub ({reason:.200}). Give a directory with config.json and "
            "model.safetensors."
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
    try:
        return T5Config.from_json(value)
    except UserError as error:
        raise UserError(f"{path}: {error} Supported students: the T5 family.") from error


def load_params(model: str, abstract: Any, config: T5Config) -> Any:
    """Reads parameters tensor by tensor, each straight onto its sharding.

    Args:
      model: a directory, or a model on the hub.
      abstract: tree of jax.ShapeDtypeStruct with shardings. Adapters (`lora_a`, `lora_b`) in it are
        not looked for and stay as they are.
      config: for the messages.

    Raises:
      UserError: no weights, or a weight is missing, unexpected or of another shape.
    """
    tensors = _Tensors(find(model))
    flat = flax.traverse_util.flatten_dict(abstract, sep="/")
    result, used = {}, set()
    for path, leaf in flat.items():
        if path.rpartition("/")[2].startswith("lora_"):
            result[path] = leaf
            continue
        layers = leaf.shape[0] if "/layers/" in path else None
        names = [hf_name(path, i) for i in range(layers or 1)]
        used.update(names)
        shape = leaf.shape[1:] if layers else leaf.shape
        parts = [
            _from_hf(path, tensors.read(name, _hf_shape(path, shape), config), shape, leaf.dtype)
            for name in names
        ]
        value = np.stack(parts) if layers else parts[0]
        result[path] = jax.device_put(value, leaf.sharding)
    unexpected = sorted(tensors.names - used - _REPEATED - _tied(config))
    if unexpected:
        raise UserError(
            f"{tensors.directory} holds {unexpected[0]} and {len(unexpected) - 1} further weights "
            "that its config.json has no place for (num_layers, num_decoder_layers, "
            "feed_forward_proj, tie_word_embeddings). Give the config.json that the weights belong to."
        )
    return flax.traverse_util.unflatten_dict(result, sep="/")


def save_pretrained(
    directory: files.PathLike,
    config: T5Config,
    params: Any,
    tokenizer: Any = None,
    dtype: str = "float32",
) -> None:
    """Writes `config.json`, `model.safetensors` and the tokenizer's files.

    Args:
      directory: made if it is missing.
      config: the architecture.
      params: plain tree, layers stacked or written out, without adapters.
      tokenizer: of transformers, or None.
      dtype: of the stored weights, "float32" or "bfloat16".

    Raises:
      UserError: the disk is full or read-only.
    """
    directory = pathlib.Path(directory)
    tensors: dict[str, jax.Array] = {}
    for path, value in flax.traverse_util.flatten_dict(params, sep="/").items():
        layers = value if "/layers/" in path else [value]
        for i, layer in enumerate(layers):
            array = _to_hf(path, np.asarray(jax.device_get(layer), np.float32))
            tensors[hf_name(path, i)] = jax.numpy.asarray(array, dtype)
    with files.replacing(directory / "model.safetensors") as file:
        file.write(safetensors.flax.save(tensors, metadata={"format": "pt"}))
    files.write_json(directory / "config.json", config.to_json() | {"dtype": dtype})
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)


def stack(params: Any) -> Any:
    """Layers written out -> stacked, for `scan_layers=True`."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    groups: dict[str, dict[int, Any]] = {}
    for path, value in flat.items():
        match = re.search(r"/layers_(\d+)/", path)
        number = int(match[1]) if match else -1
        groups.setdefault(re.sub(r"/layers_\d+/", "/layers/", path), {})[number] = value
    stacked = {
        path: found[-1] if -1 in found else jax.numpy.stack([found[i] for i in range(len(found))])
        for path, found in groups.items()
    }
    return flax.traverse_util.unflatten_dict(stacked, sep="/")


def unroll(params: Any) -> Any:
    """Stacked layers -> written out, for `scan_layers=False`; others stay as they are."""
    result = {}
    for path, value in flax.traverse_util.flatten_dict(params, sep="/").items():
        if "/layers/" not in path:
            result[path] = value
            continue
        for i in range(value.shape[0]):
            result[path.replace("/layers/", f"/layers_{i}/")] = value[i]
    return flax.traverse_util.unflatten_dict(result, sep="/")


def hf_name(path: str, layer: int = 0) -> str:
    """The tensor of a parameter; of a stacked one, that of its layer `layer`."""
    if path == "shared/embedding":
        return "shared.weight"
    if path == "lm_head/kernel":
        return "lm_head.weight"
    stack_name, part, *rest = path.split("/")
    if part == "relative_bias":
        return f"{stack_name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    if part == "final_norm":
        return f"{stack_name}.final_layer_norm.weight"
    number = int(part.removeprefix("layers_")) if part != "layers" else layer
    sublayer = _SUBLAYERS[stack_name][rest[0].removesuffix("_norm")]
    prefix = f"{stack_name}.block.{number}.layer"
    if rest[0].endswith("_norm"):
        return f"{prefix}.{sublayer[0]}.layer_norm.weight"
    return f"{prefix}.{sublayer}.{rest[1]}.weight"


def _is_kernel(path: str) -> bool:
    return path.endswith("/kernel")


def _hf_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if not _is_kernel(path):
        return shape
    inputs = int(np.prod(shape[:-1])) if "/o/" in path else shape[0]
    return int(np.prod(shape)) // inputs, inputs


def _from_hf(path: str, tensor: np.ndarray, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    tensor = np.ascontiguousarray(tensor.T) if _is_kernel(path) else tensor
    return tensor.reshape(shape).astype(dtype)


def _to_hf(path: str, array: np.ndarray) -> np.ndarray:
    if not _is_kernel(path):
        return array
    outputs, inputs = _hf_shape(path, array.shape)
    return np.ascontiguousarray(array.reshape(inputs, outputs).T)


def _tied(config: T5Config) -> set[str]:
    return {"lm_head.weight"} if config.tie_word_embeddings else set()


class _Tensors:
    """The tensors of a directory, in one file or several, read one at a time."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        index = directory / "model.safetensors.index.json"
        if index.is_file():
            where = files.read_json(index)["weight_map"]
        elif (directory / "model.safetensors").is_file():
            with self._open("model.safetensors") as file:
                where = dict.fromkeys(file.keys(), "model.safetensors")
        else:
            raise UserError(
                f"{directory} has no weights: neither model.safetensors nor "
                f"model.safetensors.index.json is there. {_RANDOM}, or give a directory with weights."
            )
        # Names in the index are of files beside it, wherever they claim to be.
        self._where = {name: pathlib.PurePath(file).name for name, file in where.items()}
        self.names = set(self._where)

    def read(self, name: str, shape: tuple[int, ...], config: T5Config) -> np.ndarray:
        if name not in self._where:
            raise UserError(
                f"{self.directory} has no weight {name}, of shape {list(shape)} by its config.json. "
                f"{_RANDOM}, or give the config.json that the weights belong to."
            )
        with self._open(self._where[name]) as file:
            found = tuple(file.get_slice(name).get_shape())
            if found != shape:
                raise UserError(
                    f"{self.directory}: the weight {name} has shape {list(found)}, but its "
                    f"config.json makes it {list(shape)} ({_keys_at_fault(found, shape, config)}). "
                    "Give the config.json that the weights belong to."
                )
            return np.asarray(file.get_tensor(name))

    def _open(self, name: str) -> Any:
        path = self.directory / name
        try:
            return safetensors.safe_open(path, framework="flax")
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"Cannot read {path}: {error}. Fetch or copy it again.") from error


def _keys_at_fault(found: tuple[int, ...], shape: tuple[int, ...], config: T5Config) -> str:
    """Keys of config.json whose values are sizes of the dimensions that differ."""
    sizes = {
        "vocab_size": config.vocab_size,
        "d_model": config.d_model,
        "d_ff": config.d_ff,
        "num_heads x d_kv": config.num_heads * config.d_kv,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
    }
    wrong = [b for a, b in zip(found, shape, strict=False) if a != b] or list(shape)
    names = [f"{name}={size}" for name, size in sizes.items() if size in wrong]
    return "by " + ", ".join(names)
