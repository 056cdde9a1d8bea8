"""The tensors of a Hugging Face directory or a GGUF file, and what is said if they do not fit."""

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
_FITTING = "Give the config.json that the weights belong to."
_RANDOM = "set student.init=random to start from random values"


class Tensors:
    """The tensors of a directory, in one file or several, or of a GGUF file, one at a time."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory
        self._gguf = GGUFFile(directory) if directory.suffix == ".gguf" else None
        if self._gguf is not None:
            where = dict.fromkeys(self._gguf.names, directory.name)
        elif (directory / WEIGHTS).is_file():
            with self._open(WEIGHTS) as file:
                where = dict.fromkeys(file.keys(), WEIGHTS)
        elif (directory / INDEX).is_file():
            where = files.read_json(directory / INDEX)["weight_map"]
        else:
            reason = f"neither {WEIGHTS} nor {INDEX} is there"
            if pickled := sorted(directory.glob("pytorch_model*.bin")):
                reason = f"{pickled[0].name} is a pickle, which can run code and is never read"
            raise UserError(
                f"{directory} has no weights: {reason}. Give a directory with safetensors "
                f"(transformers' save_pretrained writes them), or {_RANDOM}."
            )
        # Names in the index are of files beside it, wherever they claim to be.
        self._where = {name: pathlib.PurePath(file).name for name, file in where.items()}
        self.names = set(self._where)

    def check_names(self, expected: set[str], config: ModelConfig) -> None:
        """Refuses directories that have weights too few or too many."""
        names = config.names
        keys = names.DECIDING
        if missing := sorted(expected - self.names):
            raise UserError(
                f"{self.directory} lacks {_some(missing)}, which its config.json wants ({keys}). "
                f"{_FITTING[:-1]}, or {_RANDOM}."
            )
        extra = self.names - expected - names.unused(self.names)
        copies = names.COPIES | ({"lm_head.weight"} if config.tie_word_embeddings else set())
        for name in sorted(extra & copies):
            if not np.array_equal(self._get(name), self._get(names.EMBEDDING)):
                raise UserError(
                    f"{self.directory}: {name} differs from {names.EMBEDDING}, but its config.json "
                    f"says that they are one (tie_word_embeddings). {_FITTING}"
                )
        if unexpected := sorted(extra - copies):
            raise UserError(
                f"{self.directory} holds {_some(unexpected)}, which its config.json has no place "
                f"for ({keys}). {_FITTING}"
            )

    def read(self, name: str, path: str, config: ModelConfig) -> np.ndarray:
        """The tensor `name` of the parameter `path`, whose shape is checked."""
        tensor, shape = self._get(name), hf_shape(path, config)
        if tensor.shape != shape:
            keys = [
                f"{key}={size}"
                for key, size, found in zip(
                    config.names.hf_keys(path), shape, tensor.shape, strict=False
                )
                if size != found
            ]
            raise UserError(
                f"{self.directory}: the weight {name} has shape {list(tensor.shape)}, but its "
                f"config.json makes it {list(shape)} (by {' and '.join(keys) or 'its rank'}). "
                f"{_FITTING}"
            )
        return tensor

    def _get(self, name: str) -> np.ndarray:
        if self._gguf is not None:
            return self._gguf.get(name)
        with self._open(self._where[name]) as file:
            return file.get_tensor(name)

    def _open(self, name: str) -> Any:
        path = self.directory / name
        try:
            return safetensors.safe_open(path, framework="np")
        except (OSError, safetensors.SafetensorError, json.JSONDecodeError) as error:
            raise UserError(f"Cannot read {path}: {error}. Fetch or copy it again.") from error


def _some(names: list[str]) -> str:
    """The first name, and how many there are besides."""
    further = f" and {len(names) - 1} further weights" if len(names) > 1 else ""
    return f"the weight {names[0]}{further}"
