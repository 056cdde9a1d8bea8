"""On an accelerator: how near training comes to its peak, and torch on the same device.

In miniature it runs on any machine, with shapes whose figures mean nothing.
"""

import dataclasses
import gc
import statistics
from collections.abc import Callable, Iterator

import jax
import torch
from torch._dynamo.exc import TorchDynamoException

from benchmarks.speed import generation, interleaved
from benchmarks.speed.interleaved import Run
from benchmarks.speed.pairs import OurStep, TorchStep, Work, has_peft
from kpod_jax.models.families import NAMED
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.models.t5_config import T5Config
from kpod_jax.parallel import devices

TRAINING = (
    "| student | rows × (prompt + target) | MFU | target tokens / s | torch eager / ours | "
    "torch compiled / ours |",
    "| --- " * 6 + "|",
)
DECODING = (
    "| student | rows | prompt + new tokens | new tokens / s | torch / ours |",
    "| --- " * 5 + "|",
)
_LLAMA = NAMED["huggyllama/llama-7b"]
_SMOL = NAMED["HuggingFaceTB/SmolLM2-135M"]
_TRAINING = {
    "T5-base": Work(NAMED["t5-base"], 32, 256, 256),
    "FlanT5-Large": Work(NAMED["google/flan-t5-large"], 16, 256, 256),
    "SmolLM2-135M": Work(_SMOL, 32, 256, 384),
    "LLaMA-7B, LoRA of rank 64": Work(_LLAMA, 4, 256, 384, lora=64, remat=True),
}
_DECODING = {
    "T5-base": Work(NAMED["t5-base"], 256, 256, 128),
    "SmolLM2-135M": Work(_SMOL, 256, 256, 128),
}
_STEPS, _ROUNDS = 10, 5
_TINY_T5 = T5Config(64, 32, 16, 64, 1, 1, 2)
_TINY_LLAMA = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=16,
)
_MEMORY = (torch.OutOfMemoryError, jax.errors.JaxRuntimeError)


def _small(work: Work) -> Work:
    config = _TINY_T5 if isinstance(work.config, T5Config) else _TINY_LLAMA
    return dataclasses.replace(
        work, config=config, rows=2, prompt=16, target=16, lora=min(work.lora, 2)
    )


def _sides(makers: dict[str, Callable[[], Run]], rounds: int) -> dict[str, list[float] | str]:
    """Seconds of those sides that run; of the others, why they do not."""
    sides: dict[str, Run] = {}
    found: dict[str, list[float] | str] = {}
    for name, make in makers.items():
        try:
            sides[name] = make()
            sides[name]()
        except _MEMORY as error:
            sides.pop(name, None)
            found[name] = "out of memory" if "memory" in str(error).lower() else str(error)[:60]
        except TorchDynamoException as error:
            sides.pop(name)
            found[name] = f"does not compile: {type(error).__name__}"
        gc.collect()
        torch.cuda.empty_cache()
    return found | interleaved.seconds(sides, rounds, warm_up=1)


def _ratio(found: dict[str, list[float] | str], side: str) -> str:
    ours, other = found["ours"], found[side]
    if isinstance(ours, str) or isinstance(other, str):
        return other if isinstance(other, str) else ""
    return str(interleaved.ratio(ours, other))


def training_row(
    name: str, work: Work, steps: int = _STEPS, rounds: int = _ROUNDS, compiler: str = "inductor"
) -> str:
    """One line of the first table. Layers are scanned, as the configurations of `configs/` have it.

    Args:
      name: of the student.
      work: of a step.
      steps: between two times that the host waits.
      rounds: of so many steps.
      compiler: a backend of `torch.compile`.
    """
    if work.lora and not has_peft():
        return f"| {name} | | | | peft is not installed | |"
    flops: list[float] = []

    def ours() -> Run:
        step = OurStep(work)
        flops.append(step.flops())
        return lambda: step(steps)

    def other(compiler: str) -> Run:
        step = TorchStep(work, compiler=compiler)
        return lambda: step(steps)

    makers = {"ours": ours, "eager": lambda: other(""), "compiled": lambda: other(compiler)}
    found = _sides(makers, rounds)
    shape = f"{work.rows} × ({work.prompt} + {work.target})"
    if isinstance(found["ours"], str):
        return f"| {name} | {shape} | {found['ours']} | | | |"
    seconds = statistics.median(found["ours"]) / steps
    peak = devices.lookup(jax.devices()[0].device_kind)
    mfu = f"{flops[0] / seconds / peak.peak_flops:.1%}" if peak else "peak not known"
    tokens = work.rows * work.target / seconds
    ratios = f"{_ratio(found, 'eager')} | {_ratio(found, 'compiled')}"
    return f"| {name} | {shape} | {mfu} | {tokens:,.0f} | {ratios} |"


def decoding_row(name: str, work: Work, rounds: int) -> str:
    """One line of the second table."""
    makers = {"ours": lambda: generation.Ours(work), "torch": lambda: generation.Torch(work)}
    found = _sides(makers, rounds)  # pyright: ignore[reportArgumentType]
    shape = f"{work.rows} | {work.prompt} + {work.target}"
    if isinstance(found["ours"], str):
        return f"| {name} | {shape} | {found['ours']} | |"
    tokens = work.rows * work.target / statistics.median(found["ours"])
    return f"| {name} | {shape} | {tokens:,.0f} | {_ratio(found, 'torch')} |"


def training(miniature: bool = False) -> Iterator[str]:
    """The lines of the first table, as they are found."""
    yield from TRAINING
    for name, work in _TRAINING.items():
        if miniature:  # On a CPU torch's own compiler takes minutes.
            yield training_row(name, _small(work), 1, 1, "eager")
        else:
            yield training_row(name, work)


def decoding(miniature: bool = False) -> Iterator[str]:
    """The lines of the second table, as they are found."""
    yield from DECODING
    for name, work in _DECODING.items():
        yield decoding_row(name, _small(work) if miniature else work, 1 if miniature else _ROUNDS)
