"""The README.md of an exported student: description, usage and settings."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import huggingface_hub

from kpod_jax import baselines
from kpod_jax.config.defaults import Config, method_name, trained_method
from kpod_jax.version import __version__

_TEMPLATE = pathlib.Path(__file__).parent / "templates" / "model_card.md.j2"


def model_card(
    config: Config,
    *,
    prompt: str,
    step: int,
    decoder_only: bool,
    is_adapter: bool,
    results: Mapping[str, Any] | None,
) -> str:
    """Returns Markdown with the front matter that the Hugging Face hub reads.

    Args:
      config: configuration of the run.
      prompt: the prompt template.
      step: step of the exported checkpoint.
      decoder_only: whether the student is decoder-only, which decides the transformers class.
      is_adapter: whether the export is a PEFT adapter.
      results: contents of `results.json`, or None if the run was not evaluated.
    """
    student = config.student
    name = method_name(trained_method(config))
    title = f"{student.model.rstrip('/').rsplit('/', 1)[-1]}, distilled by {name}"
    # Settings that affect the student, without local file paths.
    sections = ("student", "weighting", "difficulty", "schedule", "distill")
    settings = {section: config[section].to_dict() for section in sections}
    if (kind := baselines.class_of(config.method)) is not None:
        keys = [key for key in kind.keys if key not in kind.file_keys]
        settings["baseline"] = {key: config.baseline[key] for key in keys}
    card = huggingface_hub.ModelCard.from_template(
        huggingface_hub.ModelCardData(
            library_name="peft" if is_adapter else "transformers",
            base_model=student.model,
            tags=["chain-of-thought", "distillation", "kpod"],
            **_model_index(title, config.data.name, results),
        ),
        template_path=str(_TEMPLATE),
        title=title,
        data=config.data.name,
        method=name,
        seed=config.seed,
        step=step,
        version=__version__,
        results=results,
        auto="AutoModelForCausalLM" if decoder_only else "AutoModelForSeq2SeqLM",
        example=json.dumps(prompt.replace("{question}", "QUESTION"), ensure_ascii=False),
        max_new_tokens=student.max_target_tokens,
        is_adapter=is_adapter,
        prompt=prompt,
        answer_template=student.answer_template,
        settings=json.dumps(settings, indent=2, ensure_ascii=False),
    )
    return f"{card}\n"


def _model_index(title: str, data: str, results: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the accuracy in the form that the hub displays."""
    if results is None:
        return {}
    accuracy = huggingface_hub.EvalResult(
        task_type="text-generation",
        dataset_type=data,
        dataset_name=data,
        dataset_split=results["split"],
        metric_type="accuracy",
        metric_value=results["accuracy"],
    )
    return {"model_name": title, "eval_results": [accuracy]}
