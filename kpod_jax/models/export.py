"""A student as a directory in Hugging Face's format, or its adapter in PEFT's."""

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
    """Writes a student, in place of what is in the directory.

    Args:
      student: model and tokenizer.
      params: its parameters.
      directory: made if it is missing.
      dtype: of the weights, "float32" or "bfloat16".
      lora: "merged" into the weights, or "adapter": a directory that PEFT loads.
      max_new_tokens: bound of a generation, for generation_config.json; 0: the student's longest
        target.

    Returns:
      Whether it is an adapter.
    """
    files.remove(directory)
    own = student.module.lora
    if own is not None and lora == "adapter":
        adapters.save_adapter(
            directory,
            student.config,
            params,
            own,
            base_model=student.model,
            tokenizer=student.tokenizer,
        )
        return True
    hub.save_pretrained(directory, student.config, params, student.tokenizer, dtype, lora=own)
    limit = max_new_tokens or student.settings.max_target_tokens
    generation: dict[str, Any] = {"do_sample": False, "max_new_tokens": limit}
    names = ("eos_token_id", "pad_token_id", "decoder_start_token_id", "bos_token_id")
    values = student.config.to_json()
    generation |= {name: values[name] for name in names if name in values}
    files.write_json(files.as_path(directory) / "generation_config.json", generation)
    return False
