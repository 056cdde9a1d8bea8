"""One student in both libraries: the same architecture, batch, optimiser and number formats.

Letters: B rows, S prompt tokens, U target tokens.
"""

import contextlib
import dataclasses
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from kpod_jax.config import defaults
from kpod_jax.models.families import ModelConfig, family_of
from kpod_jax.models.layers import LoRAConfig, best_attention
from kpod_jax.models.student import NoTokenizer, Student, student_settings
from kpod_jax.models.t5_config import T5Config
from kpod_jax.parallel import sharding
from kpod_jax.training import train_step

RATE = 1e-4


@dataclasses.dataclass(frozen=True)
class Work:
    """A training step.

    Attributes:
      config: the architecture; both sides start from random values.
      rows: B.
      prompt: S.
      target: U.
      supervised: share of the target's tokens, from its end.
      lora: adapters' rank, on q and v; 0: all parameters are trained.
      remat: whether activations are computed anew in the backward pass, on both sides.
      bfloat16: whether matrix products are; None: on an accelerator.
    """

    config: ModelConfig
    rows: int
    prompt: int
    target: int
    supervised: float = 1.0
    lora: int = 0
    remat: bool = False
    bfloat16: bool | None = None

    @property
    def low_precision(self) -> bool:
        """Matrix products in bfloat16, parameters in float32."""
        return jax.default_backend() != "cpu" if self.bfloat16 is None else self.bfloat16

    def batch(self) -> dict[str, np.ndarray]:
        """As `data.batches.BatchSource` has it, of random tokens and without padding."""
        rng = np.random.default_rng(0)
        shape = self.rows, self.target
        prompts = rng.integers(3, self.config.vocab_size, (self.rows, self.prompt))
        targets = rng.integers(3, self.config.vocab_size, shape).astype(np.int32)
        first = round(self.target * (1 - self.supervised))
        supervised = np.broadcast_to(np.arange(self.target) >= first, shape).copy()
        inputs = np.zeros(shape, np.int32)
        inputs[:, 1:] = targets[:, :-1]
        return {
            "input_ids": prompts.astype(np.int32),
            "input_mask": np.ones(prompts.shape, bool),
            "decoder_input_ids": inputs,
            "targets": targets,
            "loss_weights": supervised.astype(np.float32),
            "supervised": supervised,
            "divisor": np.full(self.rows, supervised.sum(), np.float32),
        }


def mesh(devices: int = 1) -> jax.sharding.Mesh:
    """The first devices, all along "data"."""
    return sharding.make_mesh(devices, 1, 1, devices=jax.devices()[:devices])


def student(work: Work, *, scan_layers: bool = True, attention: str = "") -> Student:
    """Ours, without parameters; dropout is off on both sides. Attention: the best, or another."""
    config: Any = work.config
    if isinstance(config, T5Config):
        config, head = dataclasses.replace(config, dropout_rate=0.0), config.d_kv
    else:
        head = config.head_dim
    dtype = jnp.bfloat16 if work.low_precision else jnp.float32
    base = "bfloat16" if work.low_precision else "float32"
    lora = LoRAConfig(work.lora, targets=("q", "v"), base_dtype=base) if work.lora else None
    module: Any = family_of(config).module(
        config,
        dtype=dtype,
        param_dtype=jnp.bfloat16 if work.lora and work.low_precision else jnp.float32,
        remat="full" if work.remat else "none",
        scan_layers=scan_layers,
        lora=lora,
        attention=attention or best_attention(dtype, head),
    )
    tokenizer = NoTokenizer(config)
    tokenizer.eos_token_id = -1  # Generations have no end.
    return Student(module, config, tokenizer, student_settings("", init="random"), seed=0)


class OurStep:
    """Our train step with its state."""

    def __init__(
        self,
        work: Work,
        *,
        scan_layers: bool = True,
        devices: int = 1,
        loss: train_step.Loss = train_step.cross_entropy,
        attention: str = "",
    ) -> None:
        self.mesh, self._key = mesh(devices), jax.random.key(0)
        self.student = student(work, scan_layers=scan_layers, attention=attention)
        settings = defaults.get_config().distill
        settings.update({"optimizer": "adamw", "learning_rate": RATE, "warmup_steps": 0})
        optimizer = train_step.make_optimizer(settings, 1000)
        rate = train_step.learning_rate(settings, 1000)
        self.step = train_step.make_train_step(self.student.module, optimizer, rate, loss=loss)
        trained, self.frozen = self.student.split(self.student.load(self.mesh))
        self.state = train_step.start_state(trained, optimizer)
        self.batch = sharding.place_batch(work.batch(), self.mesh)

    def __call__(self, steps: int = 1) -> float:
        """The loss of the last of some steps, which it waits for."""
        metrics: Any = {}
        with sharding.use(self.mesh):
            for _ in range(steps):
                self.state, metrics = self.step(self.state, self.frozen, self.batch, self._key)
        return metrics["loss"].item()

    def compiled(self) -> Any:
        """The step, for its memory and its operations."""
        with sharding.use(self.mesh):
            arguments = (self.state, self.frozen, self.batch, self._key)
            return self.step.lower(*arguments).compile()  # pyright: ignore[reportFunctionMemberAccess]

    def flops(self) -> float:
        """That the model needs for a step, see `train_step.model_flops`."""
        module, params = self.student.module, self.state["params"]
        return train_step.model_flops(module, params, self.frozen)(self.batch)


def torch_device() -> str:
    """Where torch computes."""
    return "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"


def torch_model(work: Work) -> Any:
    """The same of transformers, with peft's adapters."""
    config: Any = work.config
    values = {k: v for k, v in config.to_json().items() if k != "architectures"}
    if isinstance(config, T5Config):
        values |= {"dropout_rate": 0.0, "decoder_start_token_id": 0}
    made = transformers.AutoConfig.for_model(**values)
    maker: Any = transformers.AutoModelForCausalLM
    if isinstance(config, T5Config):
        maker = transformers.AutoModelForSeq2SeqLM
    dtype = torch.bfloat16 if work.lora and work.low_precision else torch.float32
    with torch.device(torch_device()):
        model = maker.from_config(made, dtype=dtype)
    if work.remat:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if work.lora:
        import peft

        names = ["q", "v"] if isinstance(config, T5Config) else ["q_proj", "v_proj"]
        adapters = peft.LoraConfig(r=work.lora, lora_alpha=16, target_modules=names)
        model = peft.get_peft_model(model, adapters)
    return model


def has_peft() -> bool:
    """Whether adapters can be compared."""
    return importlib.util.find_spec("peft") is not None


class TorchStep:
    """torch's train step with its state: AdamW fused, gradients clipped, as `Trainer` has it."""

    def __init__(self, work: Work, *, compiler: str = "") -> None:
        """Eager, or compiled by a backend of `torch.compile`."""
        torch.manual_seed(0)
        self._work, self._device = work, torch_device()
        self._model = torch_model(work).train()
        self._trained = [p for p in self._model.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=RATE, weight_decay=0.0, fused=True)
        self._forward: Any = self._model
        if compiler:
            self._forward = torch.compile(self._model, backend=compiler)
        self._arguments = self._of(work.batch())

    def _of(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        labels = np.where(batch["supervised"], batch["targets"], -100)
        if isinstance(self._work.config, T5Config):
            values = {
                "input_ids": batch["input_ids"],
                "attention_mask": batch["input_mask"],
                "decoder_input_ids": batch["decoder_input_ids"],
                "labels": labels,
            }
        else:  # Labels are moved by one place inside: a token predicts the one behind it.
            prompt = np.full_like(batch["input_ids"], -100)
            ids = np.concatenate([batch["input_ids"], batch["targets"]], axis=1)
            values = {
                "input_ids": ids,
                "attention_mask": np.ones_like(ids),
                "labels": np.concatenate([prompt, labels], axis=1),
            }
        return {k: torch.tensor(v, device=self._device).long() for k, v in values.items()}

    def __call__(self, steps: int = 1) -> float:
        """The loss of the last of some steps, which it waits for."""
        loss: Any = None
        for _ in range(steps):
            with self._autocast():
                loss = self._forward(**self._arguments).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def _autocast(self) -> Any:
        if not self._work.low_precision:
            return contextlib.nullcontext()
        return torch.autocast(self._device, torch.bfloat16)
