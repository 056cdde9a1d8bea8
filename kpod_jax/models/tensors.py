"""Reads the tensors of a Hugging Face directory or GGUF file, and checks names and shapes."""

import json
import pathlib
from typing import Any

import numpy as np
import safetensors

from kpod_jax.models.families import ModelConfig, hf_shape
from kpod_jax.models.gguf_file import GGUFFile
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FIX_CONFIG = "Use the config.json that belongs to the weights"
_AGAIN = "Download or copy it again"
_UNQUANTIZED = "Give the model's unquantized directory, or a GGUF file"
# Others are quantized: their values need scales.
_DTYPES = ("F64", "F32", "F16", "BF16")
_RANDOM = "set student.init=random to initialize the student randomly"


class Tensors:
    """The tensors of a Hugging Face directory or GGUF file, read one at a time."""

    def __init__(self, directory: pathlib.Path) -> None:
        """Reads the names and dtypes of the tensors.

        Raises:
          UserError: there are no weights, a file is missing or damaged, or they are quantized other
            than by GGUF.
        """
        self.directory = directory
        self._gguf = GGUFFile(directory) if directory.suffix == ".gguf" else None
        if self._gguf is not None:
            self._files = dict.fromkeys(self._gguf.names, directory.name)
        else:
            _check_method(directory)
            self._files = self._weight_map()
            self._check_files()
        self.names = set(self._files)

    def _weight_map(self) -> dict[str, str]:
        """Returns each tensor's file."""
        directory = self.directory
        if (directory / WEIGHTS).is_file():
            with self._open(WEIGHTS) as file:
                return dict.fromkeys(file.keys(), WEIGHTS)
        if not (directory / INDEX).is_file():
            raise UserError(
                f"{directory} has no weights: {_reason(directory)}. Give a directory with "
                f"safetensors (written by transformers' save_pretrained), or {_RANDOM}."
            )
        index = files.read_json(directory / INDEX)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not all(
            isinstance(name, str) for name in weight_map.values()
        ):
            raise UserError(f"{directory / INDEX} has no weight_map. {_AGAIN}.")
        # Ignore directories in the index: shards are always next to it.
        return {name: pathlib.PurePath(file).name for name, file in weight_map.items()}

    def _check_files(self) -> None:
        """Checks that all files hold their tensors, in floating-point dtypes of numpy."""
        shards: dict[str, list[str]] = {}
        for name, file in self._files.items():
            shards.setdefault(file, []).append(name)
        missing = sorted(file for file in shards if not (self.directory / file).is_file())
        if missing:
            raise UserError(
                f"Cannot read {self.directory / missing[0]}: {len(missing)} of the {len(shards)} "
                f"files that {INDEX} lists do not exist. {_AGAIN}."
            )
        for file, names in shards.items():
            with self._open(file) as opened:
                if absent := set(names) - set(opened.keys()):
                    raise UserError(
                        f"{self.directory / file} lacks {_summarize(sorted(absent))}, which "
                        f"{INDEX} expects there. {_AGAIN}."
                    )
                for name in names:
                    if (dtype := opened.get_slice(name).get_dtype()) not in _DTYPES:
                        raise UserError(
                            f"{self.directory / file}: the weight {name} has dtype {dtype}; "
                            f"expected one of {', '.join(_DTYPES)}. {_UNQUANTIZED}."
                        )

    @property
    def paths(self) -> list[pathlib.Path]:
        """The files that hold tensors."""
        return [self.directory / name for name in sorted(set(self._files.values()))]

    def check_names(self, expected: set[str], config: ModelConfig) -> None:
        """Checks that the expected weights, and no others, exist.

        Raises:
          UserError: a weight is missing or unexpected, or weights that should be tied differ.
        """
        names = config.names
        keys = names.STRUCTURE_KEYS
        if missing := sorted(expected - self.names):
            raise UserError(
                f"{self.directory} lacks {_summarize(missing)}, which its config.json requires "
                f"({keys}). {_FIX_CONFIG}, or {_RANDOM}."
            )
        extra = self.names - expected - names.unused(self.names)
        copies = names.COPIES | ({"lm_head.weight"} if config.tie_word_embeddings else set())
        for name in sorted(extra & copies):
            if not np.array_equal(self._get(name), self._get(names.EMBEDDING)):
                raise UserError(
                    f"{self.directory}: {name} differs from {names.EMBEDDING}, but config.json "
                    f"says that they are tied (tie_word_embeddings). {_FIX_CONFIG}."
                )
        if unexpected := sorted(extra - copies):
            raise UserError(
                f"{self.directory} has {_summarize(unexpected)}, which its config.json does not "
                f"expect ({keys}). {_FIX_CONFIG}."
            )

    def read(self, name: str, path: str, config: ModelConfig) -> np.ndarray:
        """Reads tensor `name` of parameter `path`.

        Raises:
          UserError: its shape does not match the configuration.
        """
        tensor, shape = self._get(name), hf_shape(path, config)
        if tensor.shape != shape:
            keys = [
                f"{key}={size}"
                for key, size, actual in zip(
                    config.names.hf_keys(path), shape, tensor.shape, strict=False
                )
                if size != actual
            ]
            raise UserError(
                f"{self.directory}: the weight {name} has shape {list(tensor.shape)}, but its "
                f"config.json requires {list(shape)} ({' and '.join(keys) or 'different rank'}). "
                f"{_FIX_CONFIG}."
            )
        return tensor

    def _get(self, name: str) -> np.ndarray:
        if self._gguf is not None:
            return self._gguf.get(name)
        with self._open(self._files[name]) as file:
            return file.get_tensor(name)

    def _open(self, name: str) -> Any:
        path = self.directory / name
        try:
            return safetensors.safe_open(path, framework="np")
        except (OSError, safetensors.SafetensorError, json.JSONDecodeError) as error:
            raise UserError(f"Cannot read {path}: {error}. {_AGAIN}.") from error


def _check_method(directory: pathlib.Path) -> None:
    """Checks that a model's configuration names no quantization, of whatever method."""
    config = files.read_json(path) if (path := directory / "config.json").is_file() else {}
    for key in ("quantization_config", "compression_config"):
        if method := isinstance(config, dict) and config.get(key):
            name = method.get("quant_method") if isinstance(method, dict) else method
            raise UserError(
                f"{path}: the weights are quantized ({key}, method {name!r}). {_UNQUANTIZED}."
            )


def _reason(directory: pathlib.Path) -> str:
    """Returns why a directory has no weights."""
    for pattern, reason in (
        ("adapter_model.*", "is an adapter of another model; merge it into that model first"),
        ("model-*-of-*.safetensors", f"is a part of a model whose {INDEX} is missing"),
        ("*.gguf", "is a GGUF file; give the file itself as student.model"),
        ("pytorch_model*.bin", "is a pickle, which can run code and is never loaded"),
    ):
        if found := sorted(directory.glob(pattern)):
            return f"{found[0].name} {reason}"
    return f"neither {WEIGHTS} nor {INDEX} exists"


def _summarize(names: list[str]) -> str:
    """Returns the first name and the number of others."""
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the weight {names[0]}{others}"
