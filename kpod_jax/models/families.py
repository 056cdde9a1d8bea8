"""The families of students: for each its configuration and its module, and those of one's own.

A module of any family has the same methods (see `models/t5.py` and `models/llama.py`), so nothing
outside this directory asks which family it has before it.
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
from kpod_jax.utils import plugins
from kpod_jax.utils.errors import UserError

ModelConfig: TypeAlias = T5Config | LlamaConfig
Model: TypeAlias = T5 | Llama
# Architectures by their id on the Hugging Face hub, for students that start from random values.
NAMED: dict[str, ModelConfig] = {**t5_config.NAMED, **llama_config.NAMED}


@dataclasses.dataclass(frozen=True)
class Family:
    """What a family is made of.

    Attributes:
      config: class of its configurations. Its `architectures` have the values of `model_type` in
        config.json that are this family's; its `names` are a module or the like with `hf_name`,
        `hf_keys`, `unused`, PROJECTIONS, EMBEDDING, DECIDING and COPIES (`llama_names`).
      module: class of its modules.
    """

    config: type[ModelConfig]
    module: type[Model]


FAMILIES = (Family(T5Config, T5), Family(LlamaConfig, Llama))


def own_family(name: str) -> Family | None:
    """The family of `student.family`, package.module:FAMILY; None for "".

    Raises:
      UserError: it cannot be imported, or is no `Family`.
    """
    found = plugins.load(name, "student.family") if name else None
    if name and not isinstance(found, Family):
        raise UserError(
            f"student.family={name!r} is no kpod_jax.models.families.Family; see docs/extending.md."
        )
    return found


def family_of(config: ModelConfig, own: Family | None = None) -> Family:
    """The family of a configuration, among the package's and one of the user's own."""
    known = (own, *FAMILIES) if own else FAMILIES
    return next(family for family in known if type(config) is family.config)


def config_from_json(value: Any, own: Family | None = None) -> ModelConfig:
    """Reads a `config.json`.

    Args:
      value: of the file.
      own: a family of the user's, which comes first where the model_type is one of its.

    Raises:
      UserError: it is of no family that is supported, or a value is not.
    """
    kind = value.get("model_type") if isinstance(value, Mapping) else None
    known = (own, *FAMILIES) if own else FAMILIES
    for family in known:
        if kind in family.config.architectures:
            return family.config.from_json(value)
    types = dict.fromkeys(name for family in known for name in family.config.architectures)
    raise UserError(
        f"students of the family {kind!r} are not supported. Supported are "
        f"{', '.join(types)} (model_type in config.json), and those of your own "
        "(student.family, docs/extending.md)."
    )


def hf_shape(path: str, config: ModelConfig) -> tuple[int, ...]:
    """The shape of a weight (of one layer), as Hugging Face stores it: outputs first."""
    keys = config.names.hf_keys(path)
    return tuple(math.prod(getattr(config, factor) for factor in key.split(" x ")) for key in keys)
