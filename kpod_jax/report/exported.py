"""A run's student as others load it: a directory with the run's results in its card."""

import pathlib
from typing import Any

from kpod_jax import baselines
from kpod_jax.config.defaults import Config
from kpod_jax.models.export import export
from kpod_jax.models.student import Student
from kpod_jax.report import model_card
from kpod_jax.utils import files


def write(config: Config, student: Student, params: Any, step: int, root: pathlib.Path) -> str:
    """Writes the student of a checkpoint to export/ of a work directory.

    Args:
      config: of the run.
      student: model and tokenizer.
      params: its parameters.
      step: of the checkpoint.
      root: the work directory; its results.json, if there is one, is told in the card.

    Returns:
      What was done, in a few words.
    """
    results, directory = root / "results.json", root / "export"
    is_adapter = export(
        student, params, directory, **config.export, max_new_tokens=config.eval.max_new_tokens
    )
    card = model_card.model_card(
        config,
        prompt=baselines.prompt_of(config, student),
        step=step,
        decoder_only=student.decoder_only,
        is_adapter=is_adapter,
        results=files.read_json(results) if results.exists() else None,
    )
    files.write_text(directory / "README.md", card)
    what = "its adapter, for PEFT" if is_adapter else "in Hugging Face format"
    return f"the student of step {step}, {what}"
