"""Saving and restoring a training's state, beside `torch.save` and `torch.load`."""

import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator

import jax
import torch

from benchmarks.speed import interleaved
from benchmarks.speed.pairs import OurStep, Work
from kpod_jax.models.t5_config import T5Config
from kpod_jax.training.checkpoints import Checkpoints

HEADER = (
    "| what | torch / ours |",
    "| --- " * 2 + "|",
)
_CONFIG, _ROUNDS = T5Config(d_model=256, d_ff=1024), 3


def table(config: T5Config = _CONFIG, rounds: int = _ROUNDS) -> Iterator[str]:
    """All lines, as they are found. Ours has every file's SHA-256 besides."""
    yield from HEADER
    step = OurStep(Work(config, 1, 16, 16))
    step()
    state = step.state
    copies = {
        str(i): torch.from_numpy(jax.device_get(leaf).copy())
        for i, leaf in enumerate(jax.tree.leaves(state))
    }
    times: dict[str, list[float]] = {"ours": [], "torch": [], "read": [], "load": [], "held": []}
    now = interleaved.clock()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        with Checkpoints(path / "ours", max_to_keep=1) as checkpoints:
            for number in range(rounds + 1):
                began, real = now(), time.perf_counter()
                checkpoints.save(number, state)
                held = time.perf_counter() - real
                checkpoints.wait()
                times["held"].append(held / (time.perf_counter() - real))
                times["ours"].append(now() - began)
                began = now()
                torch.save(copies, path / "torch.pt")
                times["torch"].append(now() - began)
                began = now()
                checkpoints.restore_like(state)
                times["read"].append(now() - began)
                began = now()
                torch.load(path / "torch.pt", weights_only=True)
                times["load"].append(now() - began)
    measured = {name: values[1:] for name, values in times.items()}
    megabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
    saved = interleaved.ratio(measured["ours"], measured["torch"])
    restored = interleaved.ratio(measured["read"], measured["load"])
    yield f"| save {megabytes:.0f} MB | {saved} |"
    yield f"| restore {megabytes:.0f} MB | {restored} |"
    held = statistics.median(measured["held"])
    yield f"| share of a save that training waits for | {held:.0%}, torch: all |"
