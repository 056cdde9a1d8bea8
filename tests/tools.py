"""What tests of several rooms share."""

import dataclasses
import pathlib
from typing import Any

from kpod_jax.config.defaults import Config
from kpod_jax.data.batches import BatchSource, Layout, Supervision
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.parallel import processes
from kpod_jax.stages import STAGES
from kpod_jax.utils.stage_cache import StageCache
from kpod_jax.utils.workdir import Workdir


def batch_source(
    tokenized: TokenizedSet, batch_size: int, seed: int = 0, **options: Any
) -> BatchSource:
    """A source whose options are those of `Layout` and of `Supervision`."""
    names = {field.name for field in dataclasses.fields(Layout)}
    ids: dict[str, Any] = {"pad_id": 0, "decoder_start_id": 0}
    layout = ids | {name: value for name, value in options.items() if name in names}
    rest = {name: value for name, value in options.items() if name not in names}
    return BatchSource(tokenized, Layout(batch_size, seed, **layout), Supervision(**rest))


def fingerprint(config: Config, path: pathlib.Path, stage: str) -> dict[str, Any]:
    """What a stage's output in a work directory depends on."""
    return StageCache(STAGES, config, Workdir(path), processes).fingerprint(stage)
