"""The student as a directory that others load."""

from kpod_jax.models import adapters, hub
from kpod_jax.report import model_card
from kpod_jax.run import Run
from kpod_jax.stages.evaluation import trained_params
from kpod_jax.utils import files


def run_stage(run: Run) -> str:
    """Writes the student of checkpoints/student to export/, with results.json in its card.

    Returns:
      What was done, in a few words.

    Raises:
      UserError: no checkpoint.
    """
    config, student = run.config, run.student
    params, step = trained_params(run)
    lora, tokenizer = student.module.lora, student.tokenizer
    directory = run.workdir / "export"
    files.remove(directory)
    is_adapter = lora is not None and config.export.lora == "adapter"
    if is_adapter:
        assert lora is not None
        base = config.student.model
        adapters.save_adapter(
            directory, student.config, params, lora, base_model=base, tokenizer=tokenizer
        )
    else:
        dtype = config.export.dtype
        hub.save_pretrained(directory, student.config, params, tokenizer, dtype, lora=lora)
        generation = {
            "do_sample": False,
            "max_new_tokens": config.eval.max_new_tokens or config.student.max_target_tokens,
        }
        ids = ("eos_token_id", "pad_token_id", "decoder_start_token_id", "bos_token_id")
        values = student.config.to_json()
        generation |= {name: values[name] for name in ids if name in values}
        files.write_json(directory / "generation_config.json", generation)
    results = run.workdir / "results.json"
    card = model_card.model_card(
        config,
        prompt=run.asked_prompt,
        step=step,
        decoder_only=student.decoder_only,
        is_adapter=is_adapter,
        results=files.read_json(results) if results.exists() else None,
    )
    files.write_text(directory / "README.md", card)
    what = "its adapter, for PEFT" if is_adapter else "in Hugging Face format"
    return f"the student of step {step}, {what}"
