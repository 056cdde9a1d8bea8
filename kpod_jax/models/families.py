"""The families of students: for each its configuration, its module and its weights' names.

A module of any family has the same methods (see `models/t5.py` and `models/llama.py`), so nothing
outside this directory asks which family it has before it.
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, TypeAlias

from kpod_jax.errors import UserError
from kpod_jax.models import llama_config, llama_names, t5_config, t5_names
from kpod_jax.models.llama import Llama
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.models.t5 import T5
from kpod_jax.models.t5_config import T5Config

ModelConfig: TypeAlias = T5Config | LlamaConfig
Model: TypeAlias = T5 | Llama
# Architectures by their id on the Hugging Face hub, for students that start from random values.
NAMED: dict[str, ModelConfig] = {**t5_config.NAMED, **llama_config.NAMED}


@dataclasses.dataclass(frozen=True)
class Family:
    """What a family is made of.

    Attributes:
      config: class of its configurations.
      module: class of its modules.
      names: module with `hf_name`, `hf_keys`, `unused`, PROJECTIONS, EMBEDDING and COPIES.
    """

    config: type[ModelConfig]
    module: type[Model]
    names: types.ModuleType


_T5 = Family(T5Config, T5, t5_names)
_LLAMA = Family(LlamaConfig, Llama, llama_names)
_BY_TYPE = {"t5": _T5, **dict.fromkeys(llama_config.FAMILIES, _LLAMA)}


def family_of(config: ModelConfig) -> Family:
    """The family of a configuration."""
    return _T5 if isinstance(config, T5Config) else _LLAMA


def config_from_json(value: Any) -> ModelConfig:
    """Reads a `config.json`.

    Raises:
      UserError: it is of no family that is supported, or a value is not.
    """
    kind = value.get("model_type") if isinstance(value, Mapping) else None
    if kind not in _BY_TYPE:
        raise UserError(
            f"students of the family {kind!r} are not supported. Supported are "
            f"{', '.join(_BY_TYPE)} (model_type in config.json)."
        )
    return _BY_TYPE[kind].config.from_json(value)


def hf_shape(path: str, config: ModelConfig) -> tuple[int, ...]:
    """The shape of a weight (of one layer), as Hugging Face stores it: outputs first."""
    keys = family_of(config).names.hf_keys(path, config)
    return tuple(math.prod(getattr(config, factor) for factor in key.split(" x ")) for key in keys)
