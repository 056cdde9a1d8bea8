"""A student: a model and its tokenizer, with parameters that are born on their shards."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kpod_jax.config import defaults
from kpod_jax.config.defaults import Config
from kpod_jax.data import tokens
from kpod_jax.data.records import Record, Rejected
from kpod_jax.data.tokenizers import load_tokenizer
from kpod_jax.models import hub, layout
from kpod_jax.models.families import Model, ModelConfig, family_of, own_family
from kpod_jax.models.layers import LoRAConfig, best_attention, flash_attention_fits
from kpod_jax.models.t5_config import T5Config
from kpod_jax.parallel import sharding
from kpod_jax.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Student:
    """A model without parameters, and where these come from.

    Attributes:
      module: a Flax module.
      config: its architecture, with the tokenizer's ids of EOS and padding.
      tokenizer: of transformers; its ids are rows of the model's embedding table.
      settings: `student` of the configuration.
      seed: of random values, adapters' among them.
    """

    module: Model
    config: ModelConfig
    tokenizer: Any
    settings: Config
    seed: int

    @property
    def model(self) -> str:
        """Directory, or id on the hub."""
        return self.settings.model

    @property
    def random(self) -> bool:
        """Whether parameters start from random values."""
        return self.settings.init == "random"

    @property
    def decoder_only(self) -> bool:
        """Whether prompt and target are one sequence."""
        return not isinstance(self.config, T5Config)

    def decoder_start(self, prompt: str) -> int:
        """The decoder's first input; a decoder-only student's depends on the prompt template."""
        if isinstance(self.config, T5Config):
            return self.config.decoder_start_token_id
        return tokens.decoder_start(self.tokenizer, prompt)

    @functools.cached_property
    def prompt(self) -> str:
        """The template of prompts, in the student's form (`tokens.resolve_prompt`)."""
        return self.resolve_prompt(self.settings.prompt)

    def resolve_prompt(self, prompt: str) -> str:
        """A template with `{question}` in it, in the student's form."""
        return tokens.resolve_prompt(
            self.tokenizer, prompt, decoder_only=self.decoder_only, chat=self.settings.chat
        )

    def tokenize(
        self,
        records: Sequence[Record],
        prompt: str | Sequence[str] = "",
        answer_template: str | Sequence[str] | None = None,
        need_rationale: bool = True,
    ) -> tuple[tokens.TokenizedSet, list[Rejected]]:
        """Records under the student's templates and limits, and those that do not fit.

        Args:
          records: in any order, which is kept.
          prompt: in the student's form, one for all or each one's; empty: the student's own.
          answer_template: likewise; None: the student's own.
          need_rationale: see `tokens.tokenize`.
        """
        settings = self.settings
        return tokens.tokenize(
            records,
            self.tokenizer,
            prompt=prompt or self.prompt,
            answer_template=settings.answer_template
            if answer_template is None
            else answer_template,
            max_question_tokens=settings.max_question_tokens,
            max_target_tokens=settings.max_target_tokens,
            decoder_only=self.decoder_only,
            need_rationale=need_rationale,
        )

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
        # Adapters are in no checkpoint of a base model; nothing else is initialised beside them.
        return layout.combine(params, self._born(mesh, layout.is_adapter))

    def split(self, params: Any) -> tuple[Any, Any]:
        """The parameters that are trained (with LoRA the adapters alone), and those frozen."""
        if self.module.lora is None:
            return params, {}
        trained, frozen = {}, {}
        for path, leaf in layout.flatten(params).items():
            (trained if layout.is_adapter(path) else frozen)[path] = leaf
        return layout.unflatten(trained), layout.unflatten(frozen)

    def embeddings(self, params: Any) -> np.ndarray:
        """[V, D] float32, the input embedding table among the parameters."""
        table = hub.fetch(layout.flatten(params), "shared/embedding", None)
        assert table is not None
        return table

    def _born(self, mesh: Mesh, wanted: Callable[[str], bool] = lambda path: True) -> Any:
        """Random values, made where they live, of the parameters that are wanted."""

        def chosen(params: Any) -> Any:
            flat = layout.flatten(params)
            return layout.unflatten({path: flat[path] for path in flat if wanted(path)})

        shardings = jax.tree.map(lambda leaf: leaf.sharding, chosen(self.abstract(mesh)))

        @functools.partial(jax.jit, out_shardings=shardings)
        def init(key: jax.Array) -> Any:
            return chosen(nn.unbox(self._init(key)))

        return init(jax.random.key(self.seed))

    def _init(self, key: jax.Array) -> Any:
        ids = jnp.zeros((1, 8), jnp.int32)
        return self.module.init(key, ids, ids == 0, ids)["params"]


class NoTokenizer:
    """In a tokenizer's place where nothing is tokenised: its ids are those of an architecture."""

    def __init__(self, config: ModelConfig) -> None:
        """Takes them over."""
        self.pad_token_id, self.eos_token_id = config.pad_token_id, config.eos_token_id
        self._size = config.vocab_size

    def __len__(self) -> int:
        return self._size

    def get_vocab(self) -> dict[str, int]:
        """No token has a name."""
        return {}


def load_student(
    model: str | Config, seed: int = 0, *, with_tokenizer: bool = True, **changes: Any
) -> Student:
    """Loads architecture and tokenizer; `Student.load` loads the parameters.

    Args:
      model: `student` of a configuration; or a directory in Hugging Face format, an id on the hub
        or a GGUF file, with the defaults of all other settings.
      seed: of random values.
      with_tokenizer: False where nothing is tokenised, as in compiling ahead of time.
      **changes: keys of `student` in a configuration, in place of its own values. `lora` is a
        `LoRAConfig`, or None for no adapters.

    Raises:
      UserError: something cannot be loaded, or the tokenizer has more tokens than the model rows.
    """
    settings = student_settings(model, **changes)
    name, init, dtype, attention = settings.model, settings.init, settings.dtype, settings.attention
    own = own_family(settings.family)
    config = hub.load_config(name, own)
    # A family of one's own may have other names for it, and is then left to XLA.
    head = getattr(config, "d_kv", None) or getattr(config, "head_dim", None)
    if attention == "auto":
        attention = "xla" if head is None else best_attention(dtype, head)
    if attention == "cudnn" and (head is None or not flash_attention_fits(dtype, head)):
        raise UserError(
            f"student.attention='cudnn' with student.dtype={dtype!r} and heads of {head} on "
            f"{jax.default_backend()}: flash attention wants bfloat16 and heads of a multiple "
            "of 8, at most 128, on an NVIDIA GPU; expected auto, xla or blocks."
        )
    if init != "random":
        hub.check_weights(name)
    loaded: Any = load_tokenizer(settings.tokenizer or name) if with_tokenizer else None
    loaded = loaded or NoTokenizer(config)
    if len(loaded) > config.vocab_size:
        raise UserError(
            f"The tokenizer {settings.tokenizer or name!r} has {len(loaded)} tokens, but the model "
            f"{name!r} has {config.vocab_size} rows (vocab_size in its config.json). Give the "
            "tokenizer that the model was trained with (student.tokenizer)."
        )
    pad = loaded.pad_token_id
    ids = {"pad_token_id": pad, "eos_token_id": loaded.eos_token_id}
    if init == "random" and isinstance(config, T5Config):
        ids["decoder_start_token_id"] = pad
    config = dataclasses.replace(config, **ids)
    lora = None
    if settings.lora.rank:
        targets = _targets(settings.lora.targets, config)
        lora = LoRAConfig(**(settings.lora.to_dict() | {"targets": targets}))
    whole = lora is None or lora.base_dtype == "float32"
    module = family_of(config, own).module(
        config,  # pyright: ignore[reportArgumentType]
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.float32 if whole else jnp.bfloat16,
        remat=settings.remat,
        scan_layers=settings.scan_layers,
        lora=lora,
        attention=attention,
    )
    return Student(module, config, loaded, settings, seed)


def student_settings(model: str | Config, **changes: Any) -> Config:
    """`student` of a configuration, changed; whoever changes that later changes no student.

    Args are those of `load_student`.
    """
    whole = defaults.get_config()
    settings = whole.student
    if isinstance(model, str):
        settings.model = model
    else:
        settings.update(model)
    if "lora" in changes:
        lora = changes.pop("lora")
        changes["lora"] = {"rank": 0} if lora is None else dataclasses.asdict(lora)
    if unknown := changes.keys() - settings.keys():
        raise UserError(
            f"A student has no setting {min(unknown)!r}; expected some of {', '.join(settings)}."
        )
    settings.update(changes)
    return settings.lock()


def _targets(asked: Sequence[str], config: ModelConfig) -> tuple[str, ...]:
    """The projections that get adapters; "all-linear", as in PEFT, is all of them."""
    known = config.names.PROJECTIONS
    if tuple(asked) == ("all-linear",):
        return tuple(known)
    if unknown := [name for name in asked if name not in known]:
        raise UserError(
            f"student.lora.targets={tuple(asked)!r}: the student has no projection {unknown[0]!r}; "
            f"expected some of {', '.join(known)}, or all-linear."
        )
    return tuple(asked)
