"""What each way to make work cheaper brings: our own program without it, and with it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.speed import generation, inputs, interleaved
from benchmarks.speed.pairs import OurStep, Work
from kpod_jax.data import arithmetic, packing
from kpod_jax.data.batches import BatchSource, Layout
from kpod_jax.models.t5_config import T5Config
from kpod_jax.training import forward, losses

HEADER = (
    "| technique | time, without / with | memory, without / with |",
    "| --- " * 3 + "|",
)
_ROUNDS = 3
# A vocabulary beside which the layers are small, as in T5-small.
CONFIG = T5Config(
    vocab_size=16384, d_model=256, d_ff=1024, num_heads=4, num_layers=4, num_decoder_layers=4
)
WORK = Work(CONFIG, 8, 64, 64)


def all_logits(
    module: Any, params: Any, batch: Any, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The loss with the logits of all positions at hand."""
    hidden, head = forward.hidden_states(module, params, batch, dropout_key=key)
    log_p = jax.nn.log_softmax(head(hidden))
    nll = -jnp.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
    total = losses.weighted_loss(nll, batch["loss_weights"], batch["supervised"])
    return total, total


def logits_twice(
    module: Any, params: Any, batch: Any, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The loss whose logits are made in the backward pass again."""
    hidden, head = forward.hidden_states(module, params, batch, dropout_key=key)
    nll = losses.token_losses(hidden, batch["targets"], batch["supervised"], head)
    total = losses.weighted_loss(nll, batch["loss_weights"], batch["supervised"])
    return total, total


def temporary(step: OurStep) -> int:
    """Bytes that a step makes and lets go of."""
    return step.compiled().memory_analysis().temp_size_in_bytes


def row(name: str, without: OurStep, within: OurStep, rounds: int) -> str:
    """One line of the table."""
    found = interleaved.seconds({"with": within, "without": without}, rounds)
    ratio = interleaved.ratio(found["with"], found["without"])
    return f"| {name} | {ratio} | {temporary(without) / temporary(within):.2f} |"


def donation(work: Work) -> str:
    """The line of buffers that the new state takes over from the old one."""
    step = OurStep(work, scan_layers=False)
    found = step.compiled().memory_analysis()
    kept = found.argument_size_in_bytes + found.temp_size_in_bytes
    without = kept + found.output_size_in_bytes
    ratio = without / (without - found.alias_size_in_bytes)
    return f"| donated state | | {ratio:.2f} |"


def rectangles(examples: int) -> Iterator[str]:
    """The lines of padding: tokens of an epoch's batches, of the built-in task."""
    tokenized = inputs.tokens(arithmetic.generate("train", examples))

    def padded(buckets: int) -> int:
        layout = Layout(inputs.ROWS, 0, pad_id=0, decoder_start_id=0, buckets=buckets)
        source = BatchSource(tokenized, layout)
        used = int((tokenized.questions.lengths + tokenized.targets.lengths).sum())
        return round(used / (1 - source.padding_fraction))

    one = padded(1)
    yield f"| 4 length buckets instead of 1, in tokens | {one / padded(4):.2f} | |"
    lengths = packing.sequence_lengths(tokenized)
    capacity = 2 * int(lengths.max())
    rows = len(packing.pack_bins(lengths, capacity))
    yield f"| packing instead of 1 bucket, in tokens | {one / (rows * capacity):.2f} | |"


def shared_prompts(work: Work, rounds: int, samples: int = 8) -> str:
    """The line of samples of one question."""
    work = dataclasses.replace(work, prompt=2 * work.prompt, target=work.target // 2)
    side = generation.Ours(work, rows=32)
    sides = {"with": lambda: side(samples), "without": lambda: side(copies=samples)}
    found = interleaved.seconds(sides, rounds, warm_up=1)
    ratio = interleaved.ratio(found["with"], found["without"])
    return f"| {samples} samples of a question share its prompt's reading | {ratio} | |"


def table(work: Work = WORK, rounds: int = _ROUNDS, examples: int = 1500) -> Iterator[str]:
    """All lines, as they are found."""
    yield from HEADER
    part, remat = (dataclasses.replace(work, **c) for c in ({"supervised": 0.4}, {"remat": True}))
    ours = OurStep(work, scan_layers=False)
    few = {"without": OurStep(part, scan_layers=False, loss=all_logits)}
    few["with"] = OurStep(part, scan_layers=False)
    name = "logits of supervised positions only (40%)"
    yield row(name, few["without"], few["with"], rounds)
    again = OurStep(work, scan_layers=False, loss=logits_twice)
    yield row("loss and gradient from the same logits", again, ours, rounds)
    yield row("unrolled instead of scanned layers", OurStep(work), ours, rounds)
    yield row("`remat=full`", ours, OurStep(remat, scan_layers=False), rounds)
    whole, half = (
        OurStep(dataclasses.replace(work, bfloat16=chosen), scan_layers=False)
        for chosen in (False, True)
    )
    yield row("bfloat16 products", whole, half, rounds)
    long = dataclasses.replace(work, rows=4, prompt=8 * work.prompt, target=8 * work.target)
    at_once = OurStep(long, scan_layers=False, attention="xla")
    name = f"attention by blocks, {long.rows} rows of {long.prompt} + {long.target} tokens"
    yield row(name, at_once, OurStep(long, scan_layers=False), rounds)
    yield donation(work)
    yield from rectangles(examples)
    yield shared_prompts(work, rounds)
