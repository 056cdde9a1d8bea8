"""Student families, built-in and custom: the configuration and module class of each.

Modules of all families have the same methods (see `models/t5.py` and `models/llama.py`), so code
outside this directory does not depend on the family.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from kpod_jax.models import llama_config, t5_config
from kpod_jax.models.llama import Llama
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.models.t5 import T5
from kpod_jax.models.t5_config import T5Config
from kpod_jax.utils import plugins, schema
from kpod_jax.utils.errors import UserError

ModelConfig: TypeAlias = T5Config | LlamaConfig
Model: TypeAlias = T5 | Llama
# Architectures by Hugging Face hub id, for randomly initialized students.
NAMED: dict[str, ModelConfig] = {**t5_config.NAMED, **llama_config.NAMED}


@dataclasses.dataclass(frozen=True)
class Family:
    """A student family.

    Attributes:
      config: configuration class. Its `architectures` lists this family's values of `model_type`
        in config.json; its `names` is a module or similar with `hf_name`, `hf_keys`, `unused`,
        PROJECTIONS, EMBEDDING, STRUCTURE_KEYS and COPIES (see `llama_names`).
      module: Flax module class.
    """

    config: type[ModelConfig]
    module: type[Model]


FAMILIES = (Family(T5Config, T5), Family(LlamaConfig, Llama))


def load_custom_family(name: str) -> Family | None:
    """Loads the custom family that `student.family` names (package.module:FAMILY); None for "".

    Raises:
      UserError: it cannot be imported or is not a `Family`.
    """
    family = plugins.load(name, "student.family") if name else None
    if name and not isinstance(family, Family):
        raise UserError(
            f"student.family={name!r} is not a kpod_jax.models.families.Family; see "
            "docs/extending.md."
        )
    return family


def family_of(config: ModelConfig, own: Family | None = None) -> Family:
    """Returns the family of a configuration: the custom one, if given, or a built-in one."""
    families = (own, *FAMILIES) if own else FAMILIES
    return next(family for family in families if type(config) is family.config)


def config_from_json(value: Mapping[str, Any], own: Family | None = None) -> ModelConfig:
    """Parses the contents of a `config.json`.

    Args:
      value: the parsed JSON.
      own: custom family, which takes precedence for the model types that it lists.

    Raises:
      UserError: the model type or a value is not supported.
    """
    kind = value.get("model_type")
    families = (own, *FAMILIES) if own else FAMILIES
    for family in families:
        if isinstance(kind, str) and kind in family.config.architectures:
            return family.config.from_json(value)
    if kind == "gemma3":
        raise UserError(
            "model_type 'gemma3' in config.json is not supported: its models read images, too. "
            "Expected gemma3_text, such as google/gemma-3-1b-it."
        )
    types = dict.fromkeys(name for family in families for name in family.config.architectures)
    raise UserError(
        f"model_type {schema.shown(kind)} in config.json is not supported. Expected one of "
        f"{', '.join(types)}, or a custom family (student.family, see docs/extending.md)."
    )


def hf_shape(path: str, config: ModelConfig) -> tuple[int, ...]:
    """Returns the shape of one layer's weight as Hugging Face stores it: outputs first."""
    keys = config.names.hf_keys(path)
    return tuple(math.prod(getattr(config, factor) for factor in key.split(" x ")) for key in keys)
