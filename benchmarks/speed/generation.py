"""Greedy generation beside transformers' `generate`."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.speed import interleaved
from benchmarks.speed.pairs import Work, mesh, student, torch_device, torch_model
from kpod_jax.data.records import Ragged
from kpod_jax.evaluation.generation import Generator
from kpod_jax.models.families import NAMED
from kpod_jax.models.t5_config import T5Config

HEADER = (
    "| student | rows | prompt + new tokens | torch / ours |",
    "| --- " * 4 + "|",
)
_ROUNDS = 3
_SMALL, _SMOL = NAMED["t5-small"], NAMED["HuggingFaceTB/SmolLM2-135M"]
_WORK = (
    ("T5-small", Work(_SMALL, 1, 64, 64)),
    ("T5-small", Work(_SMALL, 16, 64, 64)),
    ("SmolLM2-135M", Work(_SMOL, 1, 64, 32)),
    ("SmolLM2-135M", Work(_SMOL, 8, 64, 32)),
)


class Ours:
    """So many new tokens for every row; prompts are equally long and end alike."""

    def __init__(self, work: Work, rows: int | None = None) -> None:
        """Random parameters; a batch of `rows`, by default of all."""
        made, self._work, where = student(work), work, mesh()
        self._params = made.load(where)
        self._decoder_only = not isinstance(work.config, T5Config)
        config: Any = work.config
        start = _END if self._decoder_only else config.decoder_start_token_id
        self._generator = Generator(
            made, where, start, batch_size=rows or work.rows, max_new_tokens=work.target
        )

    def __call__(self, samples: int = 1, copies: int = 1) -> np.ndarray:
        """[B * copies, samples, G] tokens: each prompt is there so many times."""
        ids = prompts(self._work)
        ids = np.repeat(ids[:, :-1] if self._decoder_only else ids, copies, axis=0)
        given = Ragged.from_list(list(ids), np.int32)
        return self._generator(self._params, given, samples=samples)


_END = 7


def prompts(work: Work) -> np.ndarray:
    """[B, S] random tokens, the last the same in all rows."""
    ids = work.batch()["input_ids"]
    ids[:, -1] = _END
    return ids


class Torch:
    """The same of transformers, with its default cache."""

    def __init__(self, work: Work) -> None:
        self._work, self._model = work, torch_model(work).eval()
        if work.low_precision:
            self._model = self._model.to(torch.bfloat16)

    def __call__(self) -> np.ndarray:
        """[B, G] tokens."""
        ids = torch.tensor(prompts(self._work), device=torch_device()).long()
        with torch.no_grad():
            found = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=self._work.target,
                min_new_tokens=self._work.target,
                eos_token_id=None,
                pad_token_id=0,
            )
        return found[:, -self._work.target :].cpu().numpy()


def row(name: str, work: Work, rounds: int = _ROUNDS) -> str:
    """One line of the table."""
    found = interleaved.seconds({"ours": Ours(work), "torch": Torch(work)}, rounds, warm_up=1)
    ratio = interleaved.ratio(found["ours"], found["torch"])
    return f"| {name} | {work.rows} | {work.prompt} + {work.target} | {ratio} |"


def table() -> Iterator[str]:
    """All lines, as they are found."""
    yield from HEADER
    for name, work in _WORK:
        yield row(name, work)
