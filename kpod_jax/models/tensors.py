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
_RANDOM = "set student.init=random to initialize the student randomly"


class Tensors:
    """The tensors of a Hugging Face directory or GGUF file, read one at a time."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self._gguf = GGUFFile(directory) if directory.suffix == ".gguf" else None
        if self._gguf is not None:
            weight_map = dict.fromkeys(self._gguf.names, directory.name)
        elif (directory / WEIGHTS).is_file():
            with self._open(WEIGHTS) as file:
                weight_map = dict.fromkeys(file.keys(), WEIGHTS)
        elif (directory / INDEX).is_file():
            weight_map = files.read_json(directory / INDEX)["weight_map"]
        else:
            reason = f"neither {WEIGHTS} nor {INDEX} exists"
            if pickled := sorted(directory.glob("pytorch_model*.bin")):
                reason = f"{pickled[0].name} is a pickle, which can run code and is never loaded"
            raise UserError(
                f"{directory} has no weights: {reason}. Give a directory with safetensors "
                f"(written by transformers' save_pretrained), or {_RANDOM}."
            )
        # Ignore directories in the index: shards are always next to it.
        self._files = {name: pathlib.PurePath(file).name for name, file in weight_map.items()}
        self.names = set(self._files)

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
            raise UserError(f"Cannot read {path}: {error}. Download or copy it again.") from error


def _summarize(names: list[str]) -> str:
    """Returns the first name and the number of others."""
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"the weight {names[0]}{others}"
