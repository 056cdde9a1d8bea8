"""How a training step's cost grows: with rows, length, model and simulated devices."""

import dataclasses
import statistics
from collections.abc import Iterator, Sequence

from benchmarks.speed import interleaved
from benchmarks.speed.interleaved import Run
from benchmarks.speed.pairs import OurStep, TorchStep, Work
from kpod_jax.models.t5_config import T5Config

HEADER = (
    "| size of | sizes | ours, cost ~ size to the | torch, cost ~ size to the "
    "| torch / ours, first and last size |",
    "| --- " * 5 + "|",
)
_ROUNDS = 3
_CONFIG = T5Config(
    vocab_size=2048, d_model=128, d_kv=32, d_ff=512, num_heads=4, num_layers=2, num_decoder_layers=2
)
BASE = Work(_CONFIG, 8, 64, 64)


def rows(size: int, base: Work = BASE) -> Work:
    """More rows."""
    return dataclasses.replace(base, rows=size)


def length(size: int, base: Work = BASE) -> Work:
    """Longer prompts and targets."""
    return dataclasses.replace(base, prompt=size, target=size)


def layers(size: int, base: Work = BASE) -> Work:
    """A deeper model."""
    config = dataclasses.replace(base.config, num_layers=size, num_decoder_layers=size)
    return dataclasses.replace(base, config=config)


def width(size: int, base: Work = BASE) -> Work:
    """A wider model, of heads of the same width."""
    sizes = {"d_model": size, "d_ff": 4 * size, "num_heads": size // 32}
    return dataclasses.replace(base, config=dataclasses.replace(base.config, **sizes))


KINDS = {
    "rows": (rows, (4, 8, 16, 32)),
    "length of prompt and target": (length, (32, 64, 128, 256)),
    "layers of encoder and decoder": (layers, (1, 2, 4, 8)),
    "width": (width, (64, 128, 256, 512)),
}


def row(name: str, works: Sequence[tuple[int, Work]], rounds: int = _ROUNDS) -> str:
    """One line of the table."""
    sides: dict[str, Run] = {}
    for size, work in works:
        sides |= {f"ours {size}": OurStep(work), f"torch {size}": TorchStep(work)}
    found = interleaved.seconds(sides, rounds)
    sizes = [size for size, _ in works]
    exponents = [
        interleaved.growth(sizes, [statistics.median(found[f"{side} {n}"]) for n in sizes])
        for side in ("ours", "torch")
    ]
    shown = " | ".join(f"{value:.2f}" for value in exponents)
    ends = ", ".join(
        f"{interleaved.ratio(found[f'ours {n}'], found[f'torch {n}']).median:.2f}"
        for n in (sizes[0], sizes[-1])
    )
    return f"| {name} | {', '.join(map(str, sizes))} | {shown} | {ends} |"


def devices_row(counts: Sequence[int], work: Work = BASE, rounds: int = _ROUNDS) -> str:
    """The same batch on more simulated devices of the same processor: what dividing it costs."""
    sides: dict[str, Run] = {str(n): OurStep(work, devices=n) for n in counts}
    found = interleaved.seconds(sides, rounds)
    costs = [statistics.median(found[str(n)]) for n in counts]
    exponent = interleaved.growth(counts, costs)
    return f"| simulated devices | {', '.join(map(str, counts))} | {exponent:.2f} | | |"


def table() -> Iterator[str]:
    """All lines, as they are found."""
    yield from HEADER
    for name, (make, sizes) in KINDS.items():
        yield row(name, [(size, make(size)) for size in sizes])
    yield devices_row((1, 2, 4, 8))
