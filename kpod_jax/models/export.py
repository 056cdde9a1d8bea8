"""Exports a student in Hugging Face's format, or its adapter in PEFT's."""

import pathlib
import shutil
from typing import Any

from kpod_jax.models import adapters, hub
from kpod_jax.models.student import Student
from kpod_jax.models.tensors import INDEX, WEIGHTS, Tensors
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

# Folder of an adapter's base model, if that is not on the hub.
BASE = "base"


def export(
    student: Student,
    params: Any,
    directory: files.PathLike,
    *,
    dtype: str = "float32",
    lora: str = "merged",
    max_new_tokens: int = 0,
) -> bool:
    """Writes a student to a directory, replacing its contents.

    Args:
      student: model and tokenizer.
      params: the student's parameters.
      directory: created if missing.
      dtype: dtype of the stored weights, "float32" or "bfloat16".
      lora: "merged" merges adapters into the weights; "adapter" writes a directory for PEFT, with a
        copy of the base model in `BASE` unless that is on the hub.
      max_new_tokens: generation limit for generation_config.json; 0: the student's
        `max_target_tokens`.

    Returns:
      Whether an adapter was written.

    Raises:
      UserError: an adapter's base model is neither on the hub nor a directory of transformers.
    """
    directory, lora_config = files.as_path(directory), student.module.lora
    is_adapter = lora_config is not None and lora == "adapter"
    if is_adapter:
        check_base(student)
    files.remove(directory)
    if is_adapter:
        assert lora_config is not None
        base_model = hub.hub_id(student.model)
        adapters.save_adapter(
            directory,
            student.config,
            params,
            lora_config,
            base_model=base_model,
            tokenizer=student.tokenizer,
        )
        if base_model is None:
            _copy_base(files.local(student.model), directory / BASE)
    else:
        hub.save_pretrained(
            directory, student.config, params, student.tokenizer, dtype, lora=lora_config
        )
    limit = max_new_tokens or student.settings.max_target_tokens
    generation: dict[str, Any] = {"do_sample": False, "max_new_tokens": limit}
    names = ("eos_token_id", "pad_token_id", "decoder_start_token_id", "bos_token_id")
    values = student.config.to_json()
    generation |= {name: values[name] for name in names if name in values}
    files.write_json(directory / "generation_config.json", generation)
    return is_adapter


def check_base(student: Student) -> None:
    """Checks that an adapter's base model can be given with it.

    Raises:
      UserError: transformers could not load it.
    """
    path, reason = files.local(student.model), None
    if student.random:
        reason = "the adapter's base model was initialized randomly (student.init=random)"
    elif getattr(getattr(student.config, "traits", None), "fused", False):
        reason = (
            f"files of {student.config.model_type} hold q, k and v in one matrix, to which PEFT "
            "adds one adapter instead of three"
        )
    elif path.is_file():
        reason = f"transformers adapts no {path.suffix} file (student.model={student.model!r})"
    if reason is not None:
        raise UserError(
            f"export.lora=adapter: {reason}. Set export.lora=merged, which exports the whole "
            "student."
        )


def _copy_base(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a model's configuration, without the path it was loaded from, and its weights."""
    config = files.read_json(source / "config.json")
    files.write_json(target / "config.json", {k: config[k] for k in config if k != "_name_or_path"})
    single = source / WEIGHTS
    weights = [single] if single.is_file() else [source / INDEX, *Tensors(source).paths]
    for path in weights:
        with files.atomic_write(target / path.name) as file, path.open("rb") as stream:
            shutil.copyfileobj(stream, file)
