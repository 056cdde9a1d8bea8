"""The student: a model and its tokenizer, with parameters created directly on their shards."""

import dataclasses
import datetime
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from kpod_jax.config.defaults import Config
from kpod_jax.config.loading import section
from kpod_jax.data import chat_template, tokens
from kpod_jax.data.records import Record, Rejected
from kpod_jax.data.tokenizers import load_tokenizer
from kpod_jax.models import hub, layout
from kpod_jax.models.families import Model, ModelConfig, family_of, load_custom_family
from kpod_jax.models.layers import LoRAConfig, best_attention, flash_attention_fits
from kpod_jax.models.t5_config import T5Config
from kpod_jax.parallel import sharding
from kpod_jax.utils.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Student:
    """A model without parameters, and the settings to create or load them.

    Attributes:
      module: Flax module.
      config: the module's architecture, with the tokenizer's EOS and padding ids.
      tokenizer: a transformers tokenizer; its ids index the model's embedding table.
      settings: the section `student` of the configuration.
      seed: seed of random parameters, including adapters.
      date: the current date to chat templates that ask for it; None: today's.
    """

    module: Model
    config: ModelConfig
    tokenizer: Any
    settings: Config
    seed: int
    date: datetime.date | None = None

    @property
    def model(self) -> str:
        """Directory or hub id."""
        return self.settings.model

    @property
    def random(self) -> bool:
        """Whether parameters are initialized randomly."""
        return self.settings.init == "random"

    @property
    def decoder_only(self) -> bool:
        """Whether prompt and target form one sequence."""
        return not isinstance(self.config, T5Config)

    def decoder_start(self, prompt: str) -> int:
        """Returns the decoder's first input id; encoder-decoder students ignore `prompt`."""
        if isinstance(self.config, T5Config):
            return self.config.decoder_start_token_id
        return tokens.decoder_start(self.tokenizer, prompt)

    @functools.cached_property
    def prompt(self) -> str:
        """The prompt template in the student's format (see `tokens.resolve_prompt`)."""
        return self.resolve_prompt(self.settings.prompt)

    def resolve_prompt(self, prompt: str) -> str:
        """Converts a template containing `{question}` to the student's format."""
        return tokens.resolve_prompt(
            self.tokenizer,
            prompt,
            decoder_only=self.decoder_only,
            chat=self.settings.chat,
            date=self.prompt_date,
            system=self.settings.system_prompt,
            values=chat_template.arguments(self.settings.chat_template_kwargs),
        )

    @property
    def prompt_date(self) -> datetime.date | None:
        """The date for chat templates: `student.date` if set, else `date`."""
        fixed = self.settings.date
        return datetime.date.fromisoformat(fixed) if fixed else self.date

    def prompt_json(self, prompt: str) -> dict[str, Any]:
        """Returns the content of prompt.json: a resolved prompt template and its settings."""
        settings = self.settings
        return {
            "date": str(self.prompt_date or datetime.date.today()),
            "prompt": prompt,
            "chat": settings.chat,
            "system_prompt": settings.system_prompt,
            "chat_template_kwargs": chat_template.arguments(settings.chat_template_kwargs),
        }

    def tokenize(
        self,
        records: Sequence[Record],
        prompt: str | Sequence[str] = "",
        answer_template: str | Sequence[str] | None = None,
        need_rationale: bool = True,
    ) -> tuple[tokens.TokenizedSet, list[Rejected]]:
        """Tokenizes records with the student's templates and limits.

        Args:
          records: the records to tokenize.
          prompt: template in the student's format, one for all records or one per record; empty:
            the student's template.
          answer_template: template, one for all records or one per record; None: the student's
            template.
          need_rationale: see `tokens.tokenize`.

        Returns:
          The tokenized set, in the order of the records, and the rejected records.
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
        """Returns the parameters as a tree of jax.ShapeDtypeStruct with shardings."""
        boxed = jax.eval_shape(self._init, jax.random.key(0))
        shardings = sharding.param_shardings(boxed, mesh)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            nn.unbox(boxed),
            shardings,
        )

    def load(self, mesh: Mesh) -> Any:
        """Creates or loads the initial parameters on the mesh.

        Raises:
          UserError: the weights are missing or do not fit the architecture.
        """
        if self.random:
            return self._random_params(mesh)
        abstract = self.abstract(mesh)
        params = hub.load_params(self.model, abstract, self.config)
        if self.module.lora is None:
            return params
        # Base checkpoints contain no adapters, so only adapters are initialized here.
        return layout.combine(params, self._random_params(mesh, layout.is_adapter))

    def split(self, params: Any) -> tuple[Any, Any]:
        """Splits parameters into trained ones (only the adapters with LoRA) and frozen ones."""
        return (params, {}) if self.module.lora is None else layout.split_adapters(params)

    def embeddings(self, params: Any) -> np.ndarray:
        """Returns the input embedding table, [V, D] float32."""
        table = hub.fetch(layout.flatten(params), "shared/embedding", None)
        assert table is not None
        return table

    def _random_params(self, mesh: Mesh, keep: Callable[[str], bool] = lambda path: True) -> Any:
        """Initializes the parameters whose paths satisfy `keep`, directly on their shards."""

        def select(params: Any) -> Any:
            flat = layout.flatten(params)
            return layout.unflatten({path: flat[path] for path in flat if keep(path)})

        abstract = select(self.abstract(mesh))
        _check_memory(abstract, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)

        @functools.partial(jax.jit, out_shardings=shardings)
        def init(key: jax.Array) -> Any:
            return select(nn.unbox(self._init(key)))

        return init(jax.random.key(self.seed))

    def _init(self, key: jax.Array) -> Any:
        ids = jnp.zeros((1, 8), jnp.int32)
        return self.module.init(key, ids, ids == 0, ids)["params"]


def _check_memory(abstract: Any, mesh: Mesh) -> None:
    """Checks that parameters fit into the memory of their devices.

    Raises:
      UserError: they do not.
    """
    needed = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract)
    )
    device = mesh.local_devices[0]
    if device.platform == "cpu":  # All devices share the host's memory.
        needed *= len(mesh.local_devices)
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        available = (device.memory_stats() or {}).get("bytes_limit", needed)
    if needed > available:
        raise UserError(
            f"The student's parameters take {needed / 1e9:.1f} GB, but there are "
            f"{available / 1e9:.1f} GB of memory. Set student.model to a smaller architecture, or "
            "use more devices (mesh)."
        )


class NoTokenizer:
    """A placeholder tokenizer for when nothing is tokenized; its ids are the architecture's."""

    def __init__(self, config: ModelConfig) -> None:
        self.pad_token_id, self.eos_token_id = config.pad_token_id, config.eos_token_id
        self._size = config.vocab_size

    def __len__(self) -> int:
        return self._size

    def get_vocab(self) -> dict[str, int]:
        """Returns an empty vocabulary."""
        return {}


def load_student(
    model: str | Config, seed: int = 0, *, with_tokenizer: bool = True, **changes: Any
) -> Student:
    """Loads a student's architecture and tokenizer; `Student.load` loads the parameters.

    Args:
      model: the section `student` of a configuration; or a directory in Hugging Face format, a hub
        id or a GGUF file, with defaults for all other settings.
      seed: seed of random parameters.
      with_tokenizer: False if nothing is tokenized, as in ahead-of-time compilation.
      **changes: overrides of settings of `student`. `lora` is a `LoRAConfig`, or None for no
        adapters.

    Raises:
      UserError: loading fails, a setting is invalid, or the tokenizer has more tokens than the
        embedding table has rows.
    """
    settings = student_settings(model, **changes)
    name, init, dtype, attention = settings.model, settings.init, settings.dtype, settings.attention
    family = load_custom_family(settings.family)
    config = hub.load_config(name, family)
    # A custom family may name the head size differently; its attention then uses XLA.
    head = getattr(config, "d_kv", None) or getattr(config, "head_dim", None)
    if attention == "auto":
        attention = "xla" if head is None else best_attention(dtype, head)
    if attention == "cudnn" and (head is None or not flash_attention_fits(dtype, head)):
        raise UserError(
            f"student.attention='cudnn' with student.dtype={dtype!r} and head size {head} on "
            f"{jax.default_backend()}: flash attention requires an NVIDIA GPU, bfloat16 and a head "
            "size that is a multiple of 8 and at most 128. Set auto, xla or blocks instead."
        )
    if init != "random":
        hub.check_weights(name)
    loaded: Any = load_tokenizer(settings.tokenizer or name) if with_tokenizer else None
    loaded = loaded or NoTokenizer(config)
    # Ids may have gaps.
    size = max(len(loaded), 1 + max(loaded.get_vocab().values(), default=-1))
    if size > config.vocab_size:
        raise UserError(
            f"The tokenizer {settings.tokenizer or name!r} has {size} tokens, but the model "
            f"{name!r} has only {config.vocab_size} embeddings (vocab_size in its config.json). "
            "Set student.tokenizer to the tokenizer that the model was trained with."
        )
    pad = loaded.pad_token_id
    ids = {"pad_token_id": pad, "eos_token_id": loaded.eos_token_id}
    if init == "random" and isinstance(config, T5Config):
        ids["decoder_start_token_id"] = pad
    config = dataclasses.replace(config, **ids)
    lora = None
    if settings.lora.rank:
        targets = _resolve_targets(settings.lora.targets, config)
        lora = LoRAConfig(**(settings.lora.to_dict() | {"targets": targets}))
    is_float32 = lora is None or lora.base_dtype == "float32"
    module = family_of(config, family).module(
        config,  # pyright: ignore[reportArgumentType]
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.float32 if is_float32 else jnp.bfloat16,
        remat=settings.remat,
        scan_layers=settings.scan_layers,
        lora=lora,
        attention=attention,
    )
    return Student(module, config, loaded, settings, seed)


def student_settings(model: str | Config, **changes: Any) -> Config:
    """Returns a locked copy of the settings of `student`, with overrides applied.

    Takes the arguments of `load_student`.
    """
    if "lora" in changes:
        lora = changes.pop("lora")
        changes["lora"] = {"rank": 0} if lora is None else dataclasses.asdict(lora)
    return section("student", model, changes)


def _resolve_targets(targets: Sequence[str], config: ModelConfig) -> tuple[str, ...]:
    """Returns the projections that get adapters; "all-linear" means all of them, as in PEFT."""
    projections = config.names.PROJECTIONS
    if tuple(targets) == ("all-linear",):
        return tuple(projections)
    if unknown := [name for name in targets if name not in projections]:
        raise UserError(
            f"student.lora.targets={tuple(targets)!r}: the student has no projection "
            f"{unknown[0]!r}. Expected some of {', '.join(projections)}, or all-linear"
            f"{did_you_mean(unknown[0], [*projections, 'all-linear'])}."
        )
    return tuple(targets)
