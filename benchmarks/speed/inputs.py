"""The input pipeline by itself, beside the training step that it feeds."""

import pathlib
import statistics
import tempfile
from collections.abc import Iterator

import numpy as np

from benchmarks.speed import interleaved
from benchmarks.speed.pairs import OurStep, Work
from kpod_jax.config import defaults
from kpod_jax.data import arithmetic, token_store
from kpod_jax.data.batches import BatchSource, Layout, Supervision
from kpod_jax.data.records import Record
from kpod_jax.data.tokenizers import load_tokenizer
from kpod_jax.data.tokens import TokenizedSet, tokenize
from kpod_jax.models import hub

HEADER = (
    "| what | share of the quickstart's training step |",
    "| --- " * 2 + "|",
)
_STUDENT, ROWS, _EXAMPLES, _BATCHES, _ROUNDS = "kpod_jax/assets/tiny_t5", 32, 1500, 8, 5


def tokens(records: list[Record]) -> TokenizedSet:
    """As the quickstart's student reads them."""
    config = defaults.get_config().student
    return tokenize(
        records,
        load_tokenizer(_STUDENT),
        prompt=config.prompt,
        answer_template=config.answer_template,
        max_question_tokens=256,
        max_target_tokens=384,
    )[0]


def source(tokenized: TokenizedSet) -> BatchSource:
    """Batches on a schedule's start steps."""
    starts = np.maximum(0, tokenized.num_steps - 1)
    layout = Layout(ROWS, 0, pad_id=0, decoder_start_id=0)
    return BatchSource(tokenized, layout, Supervision(start_steps=lambda phase: starts))


def table(examples: int = _EXAMPLES, rounds: int = _ROUNDS) -> Iterator[str]:
    """All lines, as they are found."""
    yield from HEADER
    records = arithmetic.generate("train", examples)
    tokenized = tokens(records)
    batches = source(tokenized)
    prompt, target = max(batches.shapes)
    step = OurStep(Work(hub.load_config(_STUDENT), ROWS, prompt, target), scan_layers=False)

    def read() -> None:
        for _ in batches.iterate(0, _BATCHES):
            pass

    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "tokens"
        token_store.save(path, tokenized)
        sides = {
            "step": step,
            "read": read,
            "tokenise": lambda: tokens(records),
            "map": lambda: token_store.load(path, records),
        }
        found = interleaved.seconds(sides, rounds)
    for name, key, count in (
        ("making a batch of 32, with weights and schedule", "read", _BATCHES),
        ("tokenizing 32 records, once per run", "tokenise", len(records) / ROWS),
        ("mapping the stored tokens of 32 records, once per process", "map", len(records) / ROWS),
    ):
        shares = [a / count / b for a, b in zip(found[key], found["step"], strict=True)]
        low, high = min(shares), max(shares)
        yield f"| {name} | {statistics.median(shares):.1%} ({low:.1%} to {high:.1%}) |"
    rate = len(records) / statistics.median(found["tokenise"])
    made = _BATCHES * ROWS / statistics.median(found["read"])
    yield f"| examples per second: {made:,.0f} in batches, {rate:,.0f} tokenized | |"
