"""Reads the tensors of a Hugging Face directory or GGUF file, and checks names and shapes."""

import contextlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import safetensors

from kpod_jax.models.families import ModelConfig, hf_shape
from kpod_jax.models.gguf_file import GGUFFile
from kpod_jax.utils import schema
from kpod_jax.utils.errors import UserError, one_line

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FIX_CONFIG = "Use the config.json that belongs to the weights"
_AGAIN = "Download or copy it again"
_PICKLES = ("pytorch_model*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_UNQUANTIZED = "Give the model's unquantized directory, or a GGUF file"
# Others are quantized: their values need scales.
_DTYPES = ("F64", "F32", "F16", "BF16")
# Files larger than these are no header, index or list of names.
_MAX_INDEX = 256 << 20
_LFS = b"version https://git-lfs"
_RANDOM = "set student.init=random to initialize the student randomly"


def _is_shard(value: Any) -> bool:
    name = pathlib.PurePath(value).name if isinstance(value, str) else ""
    return name.endswith(".safetensors") and name.isprintable() and len(name) < 200


_WEIGHT_MAP = schema.Kind(
    "an object with the .safetensors file of each weight",
    lambda value: isinstance(value, dict) and bool(value) and all(map(_is_shard, value.values())),
)


class Tensors:
    """The tensors of a Hugging Face directory or GGUF file, read one at a time."""

    def __init__(self, directory: pathlib.Path) -> None:
        """Reads the names, dtypes and shapes of the tensors.

        Raises:
          UserError: there are no weights, a file is missing or damaged, or they are quantized other
            than by GGUF.
        """
        self.directory = directory
        self._gguf = GGUFFile(directory) if directory.suffix == ".gguf" else None
        if self._gguf is not None:
            self._files = dict.fromkeys(self._gguf.names, directory.name)
            self._shapes = {name: self._gguf.shape(name) for name in self._gguf.names}
        else:
            _check_method(directory)
            self._files = self._weight_map()
            self._shapes = self._read_shapes()
        self.names = set(self._files)
        self._parts: dict[str, tuple[str, slice]] = {}

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
        index = schema.read_object(directory / INDEX, max_bytes=_MAX_INDEX)
        weight_map: Any = index.get("weight_map")
        if not _WEIGHT_MAP.accepts(weight_map):
            raise UserError(
                f"{directory / INDEX}: weight_map is {schema.shown(weight_map)}; expected "
                f"{_WEIGHT_MAP.description}. {_AGAIN}."
            )
        # Ignore directories in the index: shards are always next to it.
        return {name: pathlib.PurePath(file).name for name, file in weight_map.items()}

    def _read_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns each tensor's shape, if all are in their files, in dtypes of numpy."""
        shards: dict[str, list[str]] = {}
        for name, file in self._files.items():
            shards.setdefault(file, []).append(name)
        missing = sorted(file for file in shards if not (self.directory / file).is_file())
        if missing:
            raise UserError(
                f"Cannot read {self.directory / missing[0]}: {len(missing)} of the {len(shards)} "
                f"files that {INDEX} lists do not exist. {_AGAIN}."
            )
        shapes = {}
        for file, names in shards.items():
            with self._open(file) as opened:
                if absent := set(names) - set(opened.keys()):
                    raise UserError(
                        f"{self.directory / file} lacks {_summarize(sorted(absent))}, which "
                        f"{INDEX} expects there. {_AGAIN}."
                    )
                for name in names:
                    tensor = opened.get_slice(name)
                    if (dtype := tensor.get_dtype()) not in _DTYPES:
                        raise UserError(
                            f"{self.directory / file}: {_summarize([name])} has dtype {dtype}; "
                            f"expected one of {', '.join(_DTYPES)}. {_UNQUANTIZED}."
                        )
                    shapes[name] = tuple(tensor.get_shape())
        return shapes

    @property
    def paths(self) -> list[pathlib.Path]:
        """The files that hold tensors."""
        return [self.directory / name for name in sorted(set(self._files.values()))]

    def check(self, paths: Mapping[str, str], config: ModelConfig) -> None:
        """Checks that the expected weights, and no others, exist, before any is read.

        Args:
          paths: the parameter that each weight belongs to.
          config: the architecture.

        Raises:
          UserError: a weight is missing, unexpected or of the wrong shape, or weights that should
            be tied differ.
        """
        expected = set(paths)
        names = config.names
        self._split_fused(paths, config)
        keys = names.STRUCTURE_KEYS
        if missing := sorted(expected - self.names):
            raise UserError(
                f"{self.directory} lacks {_summarize(missing)}, which its config.json requires "
                f"({keys}). {_FIX_CONFIG}, or {_RANDOM}."
            )
        for name, path in paths.items():
            self._check_shape(name, path, config)
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

    def _split_fused(self, paths: Mapping[str, str], config: ModelConfig) -> None:
        """Replaces fused tensors by their parts, in a model whose files have them."""
        for name, parts in fused_parts(paths, config).items():
            if name not in self.names:
                continue
            shape, sizes = self._shapes[name], [hf_shape(paths[part], config) for part in parts]
            expected = (sum(size[0] for size in sizes), *sizes[0][1:])
            if shape != expected:
                raise UserError(
                    f"{self.directory}: the weight {name} has shape {list(shape)}, but its "
                    f"config.json requires {list(expected)}. {_FIX_CONFIG}."
                )
            start = 0
            for part, size in zip(parts, sizes, strict=True):
                self._parts[part] = name, slice(start, start + size[0])
                self._shapes[part], self._files[part] = size, self._files[name]
                start += size[0]
            self.names = self.names - {name} | set(parts)

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor.

        Raises:
          UserError: a value of it is not finite.
        """
        tensor = self._get(name)
        with np.errstate(invalid="ignore", over="ignore"):
            finite = np.isfinite(tensor.sum(dtype=np.float64))  # Faster than every value's.
        if not finite:
            raise UserError(
                f"{self.directory / self._files[name]}: {_summarize([name])} has values that are "
                f"not finite (NaN or infinity). {_AGAIN}."
            )
        return tensor

    def _check_shape(self, name: str, path: str, config: ModelConfig) -> None:
        given, shape = self._shapes[name], hf_shape(path, config)
        if given != shape:
            keys = [
                f"{key}={size}"
                for key, size, actual in zip(config.names.hf_keys(path), shape, given, strict=False)
                if size != actual
            ]
            raise UserError(
                f"{self.directory}: the weight {name} has shape {list(given)}, but its "
                f"config.json requires {list(shape)} ({' and '.join(keys) or 'different rank'}). "
                f"{_FIX_CONFIG}."
            )

    def _get(self, name: str) -> np.ndarray:
        if name in self._parts:
            fused, rows = self._parts[name]
            return self._get(fused)[rows]
        if self._gguf is not None:
            return self._gguf.get(name)
        with self._open(self._files[name]) as file:
            return file.get_tensor(name)

    def _open(self, name: str) -> Any:
        path = self.directory / name
        try:
            return safetensors.safe_open(path, framework="np")
        except (OSError, safetensors.SafetensorError, json.JSONDecodeError) as error:
            reason = one_line(error)
            with contextlib.suppress(OSError), path.open("rb") as file:
                if file.read(len(_LFS)) == _LFS:
                    reason = "it is a pointer of Git LFS; run git lfs pull"
            raise UserError(f"Cannot read {path}: {reason}. {_AGAIN}.") from error


def fused_parts(names: Iterable[str], config: ModelConfig) -> dict[str, list[str]]:
    """Returns the fused tensors of a model's files, each with its parts in order; {} if none are.

    Args:
      names: names of the weights, of LLaMA's form.
      config: the architecture.
    """
    found: dict[str, list[str]] = {}
    if not getattr(getattr(config, "traits", None), "fused", False):
        return found
    for name in names:
        for fused, parts in config.names.FUSED.items():
            if f".{parts[0]}." in name:
                whole = name.replace(parts[0], fused)
                found[whole] = [name.replace(parts[0], part) for part in parts]
    return found


def _check_method(directory: pathlib.Path) -> None:
    """Checks that a model's configuration names no quantization, of whatever method."""
    config = schema.read_object(path) if (path := directory / "config.json").is_file() else {}
    for key in ("quantization_config", "compression_config"):
        if method := config.get(key):
            name = method.get("quant_method") if isinstance(method, dict) else method
            raise UserError(
                f"{path}: the weights are quantized ({key}, method {schema.shown(name)}). "
                f"{_UNQUANTIZED}."
            )


def _reason(directory: pathlib.Path) -> str:
    """Returns why a directory has no weights."""
    for pattern, reason in (
        ("adapter_model.*", "is an adapter of another model; merge it into that model first"),
        ("model-*-of-*.safetensors", f"is a part of a model whose {INDEX} is missing"),
        ("*.gguf", "is a GGUF file; give the file itself as student.model"),
        *((pattern, "is a pickle, which can run code and is never loaded") for pattern in _PICKLES),
    ):
        if found := sorted(directory.glob(pattern)):
            return f"{found[0].name} {reason}"
    return f"neither {WEIGHTS} nor {INDEX} exists"


def _summarize(names: list[str]) -> str:
    """Returns the first name and the number of others."""
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    name = names[0] if names[0].isprintable() and len(names[0]) < 200 else schema.shown(names[0])
    return f"the weight {name}{others}"
