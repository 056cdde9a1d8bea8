"""From the command to the first training step, with an empty and with a full compilation cache."""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from benchmarks.speed import interleaved

HEADER = (
    "| what | ours, cold / torch | ours, warm / torch | cold / warm |",
    "| --- " * 4 + "|",
)
# Each prints nothing: what is measured is the process, from its start to its end.
IMPORTS = {
    "ours": "import kpod_jax.main, kpod_jax.pipeline",
    "torch": "import torch; from transformers import T5ForConditionalGeneration",
}
_STEP = """
from benchmarks.speed.pairs import {step}, Work
from kpod_jax.models.t5_config import T5Config
import jax
jax.config.update("jax_platforms", "cpu")
config = T5Config(num_layers={layers}, num_decoder_layers={layers})
{step}(Work(config, 1, 16, 16))()
"""
_ROUNDS, _LAYERS = 2, 6


def first_step(layers: int = _LAYERS) -> dict[str, str]:
    """Programs that make T5-small and train it for a step. Both import both libraries."""
    steps = {"ours": "OurStep", "torch": "TorchStep"}
    return {side: _STEP.format(step=step, layers=layers) for side, step in steps.items()}


def processor_seconds(program: str, cache: str) -> float:
    """Of a Python process of its own, its compiled steps kept in `cache`."""

    def used() -> float:
        found = resource.getrusage(resource.RUSAGE_CHILDREN)
        return found.ru_utime + found.ru_stime

    before = used()
    command = ["env", f"JAX_COMPILATION_CACHE_DIR={cache}", sys.executable, "-c", program]
    subprocess.run(command, check=True)
    return used() - before


def row(name: str, programs: dict[str, str], rounds: int = _ROUNDS) -> str:
    """One line of the table: processor time, medians of rounds in turn."""
    found: dict[str, list[float]] = {"cold": [], "warm": [], "torch": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for kind in ("cold", "warm"):
                found[kind].append(processor_seconds(programs["ours"], cache))
            found["torch"].append(processor_seconds(programs["torch"], cache))
    columns = [("cold", "torch"), ("warm", "torch"), ("cold", "warm")]
    ratios = [str(interleaved.ratio(found[b], found[a])) for a, b in columns]
    return f"| {name} | {' | '.join(ratios)} |"


def table() -> Iterator[str]:
    """All lines, as they are found."""
    yield from HEADER
    yield row("imports", IMPORTS)
    yield row("T5-small's first step", first_step())
