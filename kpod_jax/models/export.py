"""Exports a student in Hugging Face's format, or its adapter in PEFT's."""

from typing import Any

from kpod_jax.models import adapters, hub
from kpod_jax.models.student import Student
from kpod_jax.utils import files


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
      lora: "merged" merges adapters into the weights; "adapter" writes a directory for PEFT.
      max_new_tokens: generation limit for generation_config.json; 0: the student's
        `max_target_tokens`.

    Returns:
      Whether an adapter was written.
    """
    files.remove(directory)
    lora_config = student.module.lora
    if lora_config is not None and lora == "adapter":
        adapters.save_adapter(
            directory,
            student.config,
            params,
            lora_config,
            base_model=student.model,
            tokenizer=student.tokenizer,
        )
        return True
    hub.save_pretrained(
        directory, student.config, params, student.tokenizer, dtype, lora=lora_config
    )
    limit = max_new_tokens or student.settings.max_target_tokens
    generation: dict[str, Any] = {"do_sample": False, "max_new_tokens": limit}
    names = ("eos_token_id", "pad_token_id", "decoder_start_token_id", "bos_token_id")
    values = student.config.to_json()
    generation |= {name: values[name] for name in names if name in values}
    files.write_json(files.as_path(directory) / "generation_config.json", generation)
    return False
