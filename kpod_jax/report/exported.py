"""Exports a run's student with a model card that shows the run's results."""

import pathlib
from typing import Any

from kpod_jax import baselines
from kpod_jax.config.defaults import Config
from kpod_jax.evaluation import results
from kpod_jax.models.export import export
from kpod_jax.models.student import Student
from kpod_jax.report import model_card
from kpod_jax.utils import files


def write(config: Config, student: Student, params: Any, step: int, root: pathlib.Path) -> str:
    """Writes a checkpoint's student to export/ in a work directory.

    Args:
      config: configuration of the run.
      student: model and tokenizer.
      params: parameters of the model.
      step: step of the checkpoint.
      root: the work directory; the card shows the results of its results.json, if that exists.

    Returns:
      A short description of what was exported.
    """
    directory = root / "export"
    is_adapter = export(
        student, params, directory, **config.export, max_new_tokens=config.eval.max_new_tokens
    )
    card = model_card.model_card(
        config,
        prompt=baselines.prompt_of(config, student),
        step=step,
        decoder_only=student.decoder_only,
        is_adapter=is_adapter,
        results=results.read(root) if (root / "results.json").exists() else None,
    )
    files.write_text(directory / "README.md", card)
    form = "as a PEFT adapter" if is_adapter else "in Hugging Face format"
    return f"the student of step {step}, {form}"
