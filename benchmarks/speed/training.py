"""A training step beside transformers in torch, eager and compiled."""

import dataclasses
from collections.abc import Iterator

from benchmarks.speed import interleaved, machine
from benchmarks.speed.interleaved import Run
from benchmarks.speed.pairs import OurStep, TorchStep, Work, has_peft
from kpod_jax.models.families import NAMED

HEADER = (
    "| student | rows × (prompt + target) | supervised | torch eager / ours "
    "| torch compiled / ours |",
    "| --- " * 5 + "|",
)
PRECISION_HEADER = ("| other side | time of it / ours in bfloat16 |", "| --- | --- |")
_ROUNDS = 3
_SMALL, _BASE, _SMOL = NAMED["t5-small"], NAMED["t5-base"], NAMED["HuggingFaceTB/SmolLM2-135M"]
_PACKED = Work(_SMOL, 3, 256, 256)
# name, work, whether torch.compile is tried: it takes minutes for deep models on a CPU.
_WORK = (
    ("T5-small", Work(_SMALL, 4, 64, 64), True),
    ("T5-small", Work(_SMALL, 4, 64, 64, supervised=0.4), False),
    ("T5-small", Work(_SMALL, 2, 256, 256), False),
    ("T5-base", Work(_BASE, 2, 64, 64), False),
    ("SmolLM2-135M", Work(_SMOL, 2, 64, 64), False),
    ("SmolLM2-135M", Work(_SMOL, 1, 256, 256), False),
    ("SmolLM2-135M, LoRA of rank 16", Work(_SMOL, 2, 64, 64, lora=16), False),
)


def row(name: str, work: Work, compiles: bool, rounds: int = _ROUNDS) -> str:
    """One line of the table. Layers are written out, as torch has them."""
    if work.lora and not has_peft():
        return f"| {name} | | | peft is not installed | |"
    sides: dict[str, Run] = {
        "ours": OurStep(work, scan_layers=False),
        "eager": TorchStep(work),
    }
    if compiles:
        sides["compiled"] = TorchStep(work, compiler="inductor")
    found = interleaved.seconds(sides, rounds)
    ratios = {k: str(interleaved.ratio(found["ours"], found[k])) for k in sides if k != "ours"}
    return (
        f"| {name} | {work.rows} × ({work.prompt} + {work.target}) | {work.supervised:.0%} | "
        f"{ratios['eager']} | {ratios.get('compiled', 'not tried')} |"
    )


def table() -> Iterator[str]:
    """All lines, as they are found.

    Each is made by a process of its own: how another row has left the allocator moves T5-base by a
    fifth.
    """
    yield from HEADER
    for arguments in _WORK:
        yield machine.in_new_process(row, *arguments)


def precisions(work: Work = _PACKED, rounds: int = _ROUNDS) -> Iterator[str]:
    """Returns a table that compares our step in bfloat16 with float32, and with torch in both."""
    low = dataclasses.replace(work, bfloat16=True)
    sides: dict[str, Run] = {
        "ours, bfloat16": OurStep(low, scan_layers=False),
        "ours, float32": OurStep(work, scan_layers=False),
        "torch, bfloat16": TorchStep(low),
        "torch, float32": TorchStep(work),
    }
    found = interleaved.seconds(sides, rounds)
    ours = found.pop("ours, bfloat16")
    yield from PRECISION_HEADER
    for name, seconds in found.items():
        yield f"| {name} | {interleaved.ratio(ours, seconds)} |"
