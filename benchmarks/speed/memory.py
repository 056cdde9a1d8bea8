"""Peak memory of a training, each side in a process of its own."""

import resource
from collections.abc import Iterator

import jax
import torch

from benchmarks.speed import machine
from benchmarks.speed.pairs import OurStep, TorchStep, Work
from kpod_jax.models.families import NAMED

HEADER = (
    "| student | rows × (prompt + target) | host: torch / ours | ours, temporary of a step, GB |",
    "| --- " * 4 + "|",
)
_NAME = "t5-small"
_SHAPES = ((4, 64, 64), (8, 128, 128))
_STEPS = 2


def peak(side: str, work: tuple[str, int, int, int]) -> int:
    """Bytes at most in use by this process, which trains for a few steps: on a GPU, the GPU's."""
    name, rows, prompt, target = work
    step = {"ours": OurStep, "torch": TorchStep}[side](Work(NAMED[name], rows, prompt, target))
    for _ in range(_STEPS):
        step()
    if jax.default_backend() != "gpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if side == "torch":
        return torch.cuda.max_memory_allocated()
    return (jax.local_devices()[0].memory_stats() or {})["peak_bytes_in_use"]


def table() -> Iterator[str]:
    """All lines, as they are found."""
    yield from HEADER
    for shape in _SHAPES:
        work = (_NAME, *shape)
        ours, other = (machine.in_new_process(peak, side, work) for side in ("ours", "torch"))
        analysis = OurStep(Work(NAMED[_NAME], *shape)).compiled().memory_analysis()
        rows, prompt, target = shape
        yield (
            f"| T5-small | {rows} × ({prompt} + {target}) | {other / ours:.2f} ({other / 1e9:.1f} "
            f"GB / {ours / 1e9:.1f} GB) | {analysis.temp_size_in_bytes / 1e9:.2f} |"
        )
