"""A student: a model and its tokenizer, with parameters that are born on their shards."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kpod_jax import sharding
from kpod_jax.data.tokens import load_tokenizer
from kpod_jax.errors import UserError
from kpod_jax.models import hub
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.t5 import T5, T5Config


@dataclasses.dataclass(frozen=True)
class Student:
    """A model without parameters, and where these come from.

    Attributes:
      module: a Flax module.
      config: its architecture.
      tokenizer: of transformers; its ids are rows of the model's embedding table.
      model: directory, or id on the hub.
      random: whether parameters start from random values.
      seed: of random values, adapters' among them.
    """

    module: T5
    config: T5Config
    tokenizer: Any
    model: str
    random: bool
    seed: int

    def abstract(self, mesh: Mesh) -> Any:
        """Shapes, dtypes and shardings of the parameters: a tree of jax.ShapeDtypeStruct."""
        boxed = jax.eval_shape(self._init, jax.random.key(0))
        shardings = sharding.param_shardings(boxed, mesh)
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            nn.unbox(boxed),
            shardings,
        )

    def load(self, mesh: Mesh) -> Any:
        """The parameters before distillation, on the mesh.

        Raises:
          UserError: the weights are missing or do not fit the architecture.
        """
        if self.random:
            return self._born(mesh)
        abstract = self.abstract(mesh)
        params = hub.load_params(self.model, abstract, self.config)
        if self.module.lora is None:
            return params
        # Adapters are in no checkpoint of a base model; the other random values are dropped.
        born = flax.traverse_util.flatten_dict(self._born(mesh), sep="/")
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        return flax.traverse_util.unflatten_dict(
            {path: born[path] if _is_adapter(path) else value for path, value in flat.items()},
            sep="/",
        )

    def trainable(self, params: Any) -> Any:
        """A tree of bool: with LoRA the adapters alone, else everything."""
        flat = flax.traverse_util.flatten_dict(params, sep="/")
        everything = self.module.lora is None
        return flax.traverse_util.unflatten_dict(
            {path: everything or _is_adapter(path) for path in flat}, sep="/"
        )

    def embeddings(self, params: Any) -> np.ndarray:
        """[V, D] float32, the input embedding table among the parameters."""
        return np.asarray(jax.device_get(params["shared"]["embedding"]), np.float32)

    def _born(self, mesh: Mesh) -> Any:
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract(mesh))

        @functools.partial(jax.jit, out_shardings=shardings)
        def init(key: jax.Array) -> Any:
            return nn.unbox(self._init(key))

        return init(jax.random.key(self.seed))

    def _init(self, key: jax.Array) -> Any:
        ids = jnp.zeros((1, 8), jnp.int32)
        return self.module.init(key, ids, ids == 0, ids)["params"]


def load_student(
    model: str,
    *,
    init: str = "pretrained",
    tokenizer: str = "",
    dtype: str = "float32",
    scan_layers: bool = True,
    remat: str = "none",
    lora: LoRAConfig | None = None,
    seed: int = 0,
) -> Student:
    """Loads architecture and tokenizer; parameters are loaded by `Student.load`.

    Args:
      model: directory in Hugging Face's format, or id on the hub; with `init="random"` also a
        config.json or a known name (`t5_config.NAMED`).
      init: "pretrained" or "random".
      tokenizer: where it comes from, if not from `model`.
      dtype: of activations and matrix products.
      scan_layers: see `T5`.
      remat: see `T5`.
      lora: adapters, or None.
      seed: of random values.

    Raises:
      UserError: something cannot be loaded, or the tokenizer has more tokens than the model rows.
    """
    config = hub.load_config(model)
    loaded = load_tokenizer(tokenizer or model)
    if len(loaded) > config.vocab_size:
        raise UserError(
            f"The tokenizer {tokenizer or model!r} has {len(loaded)} tokens, but the model {model!r} "
            f"has {config.vocab_size} rows (vocab_size in its config.json). Give the tokenizer that "
            "the model was trained with (student.tokenizer)."
        )
    module = T5(
        config,
        dtype=jnp.dtype(dtype),
        remat=remat,
        scan_layers=scan_layers,
        lora=lora,
    )
    return Student(module, config, loaded, model, init == "random", seed)


def _is_adapter(path: str) -> bool:
    return path.rpartition("/")[2].startswith("lora_")
