"""The README.md of an exported student: description, usage and settings.

Local paths never appear in it; a file or directory is represented by its name.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import huggingface_hub

from kpod_jax import baselines
from kpod_jax.config.defaults import Config, method_name, trained_method
from kpod_jax.models import hub
from kpod_jax.models.export import BASE
from kpod_jax.version import __version__

_TEMPLATE = pathlib.Path(__file__).parent / "templates" / "model_card.md.j2"
# Ids on the hub of the data sets that have a name here.
_DATASETS = {
    "gsm8k": "openai/gsm8k",
    "svamp": "ChilleD/SVAMP",
    "asdiv": "EleutherAI/asdiv",
    "commonsense_qa": "tau/commonsense_qa",
}
# Settings that may be paths.
_PATHS = (
    ("student", "model"),
    ("student", "tokenizer"),
    ("weighting", "answerer"),
    ("weighting", "reference"),
    ("weighting", "weights"),
    ("schedule", "vectors"),
)


def model_card(
    config: Config,
    *,
    prompt: str,
    step: int,
    decoder_only: bool,
    is_adapter: bool,
    results: Mapping[str, Any] | None,
    example: tuple[str, bool] | None = None,
) -> str:
    """Returns Markdown with the front matter that the Hugging Face hub reads.

    Args:
      config: configuration of the run.
      prompt: the prompt template.
      step: step of the exported checkpoint.
      decoder_only: whether the student is decoder-only, which decides the transformers class.
      is_adapter: whether the export is a PEFT adapter.
      results: contents of `results.json`, or None if the run was not evaluated.
      example: the text, with `{question}` in it, and the value of `add_special_tokens` with which
        the tokenizer gives the tokens of the evaluation; None: `prompt` and True.
    """
    student = config.student
    name = method_name(trained_method(config))
    model = _without_folder(student.model)
    title = f"{model.rsplit('/', 1)[-1]}, distilled by {name}"
    # Settings that affect the student, without local file paths.
    sections = ("student", "weighting", "difficulty", "schedule", "distill")
    settings = {section: config[section].to_dict() for section in sections}
    for section, key in _PATHS:
        settings[section][key] = _without_folder(settings[section][key])
    if (kind := baselines.class_of(config.method)) is not None:
        keys = [key for key in kind.keys if key not in kind.file_keys]
        settings["baseline"] = {key: config.baseline[key] for key in keys}
    datasets = _datasets(config)
    task = "text-generation" if decoder_only else "text2text-generation"
    # A random student has only the architecture of a model on the hub.
    base_id = hub.hub_id(student.model) if student.init != "random" else None
    known_license = hub.license_of(student.model) if student.init != "random" else None
    text, add_special_tokens = example or (prompt, True)
    card = huggingface_hub.ModelCard.from_template(
        huggingface_hub.ModelCardData(
            library_name="peft" if is_adapter else "transformers",
            base_model=base_id,
            license=config.export.license or known_license,
            datasets=datasets or None,
            pipeline_tag=task,
            tags=["chain-of-thought", "distillation", "kpod"],
            **_model_index(title, task, config, results, step),
        ),
        template_path=str(_TEMPLATE),
        title=title,
        base_model=model,
        data=config.data.name,
        method=name,
        seed=config.seed,
        step=step,
        version=__version__,
        results=results,
        auto="AutoModelForCausalLM" if decoder_only else "AutoModelForSeq2SeqLM",
        base=json.dumps(base_id or f"DIRECTORY/{BASE}", ensure_ascii=False),
        example=json.dumps(text.replace("{question}", "QUESTION"), ensure_ascii=False),
        add_special_tokens=add_special_tokens,
        decoder_only=decoder_only,
        generation=_generation(config),
        is_adapter=is_adapter,
        prompt=prompt,
        answer_template=student.answer_template,
        settings=json.dumps(settings, indent=2, ensure_ascii=False),
    )
    return f"{card}\n"


def _without_folder(name: str) -> str:
    """Returns a hub id, or the last part of a path."""
    if hub.hub_id(name) is not None:
        return name
    parts = [part for part in re.split(r"[\\/]", name) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else name


def _datasets(config: Config) -> list[str]:
    """Returns the ids on the hub of the data that the student was trained on."""
    data = config.data
    sources = [data.path] if data.name == "huggingface" else []
    # A colon separates the name of a configuration.
    ids = [hub.hub_id(source.partition(":")[0]) for source in (*sources, data.rationales) if source]
    known = [_DATASETS[data.name]] if data.name in _DATASETS else []
    return list(dict.fromkeys([*known, *(name for name in ids if name and "/" in name)]))


def _generation(config: Config) -> str:
    """Returns the arguments of `generate` that make it generate as the evaluation does."""
    settings = config.eval
    arguments = {
        "max_new_tokens": settings.max_new_tokens or config.student.max_target_tokens,
        "do_sample": settings.temperature > 0,
    }
    if settings.temperature > 0:
        # transformers samples from 50 tokens by default.
        arguments |= {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _model_index(
    title: str, task: str, config: Config, results: Mapping[str, Any] | None, step: int
) -> dict[str, Any]:
    """Returns the accuracy in the form that the hub displays, if it is that of this checkpoint."""
    if results is None or results.get("checkpoint_step") != step:
        return {}
    data = config.data
    path = hub.hub_id(data.path.partition(":")[0]) if data.name == "huggingface" else None
    accuracy = huggingface_hub.EvalResult(
        task_type=task,
        dataset_type=_DATASETS.get(data.name) or path or data.name,
        dataset_name=data.name,
        dataset_split=results["split"],
        metric_type="accuracy",
        metric_value=results["accuracy"],
    )
    return {"model_name": title, "eval_results": [accuracy], "metrics": ["accuracy"]}
