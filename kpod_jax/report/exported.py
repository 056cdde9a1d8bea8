"""Exports a run's student with a model card that shows the run's results."""

import pathlib
from typing import Any

from kpod_jax import baselines
from kpod_jax.config.defaults import Config
from kpod_jax.data import tokens
from kpod_jax.data.records import Record
from kpod_jax.evaluation import results
from kpod_jax.models.export import export
from kpod_jax.models.student import Student
from kpod_jax.report import model_card
from kpod_jax.training import divergence
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

    Raises:
      UserError: the parameters are not finite.
    """
    directory = root / "export"
    divergence.require_finite(
        params,
        "The student's parameters",
        "Export an earlier checkpoint with --config.eval.checkpoint=STEP, or train again.",
    )
    is_adapter = export(
        student,
        params,
        directory,
        dtype=config.export.dtype,
        lora=config.export.lora,
        max_new_tokens=config.eval.max_new_tokens,
    )
    prompt = baselines.prompt_of(config, student)
    card = model_card.model_card(
        config,
        prompt=prompt,
        example=_example(student, prompt),
        step=step,
        decoder_only=student.decoder_only,
        is_adapter=is_adapter,
        results=results.read(root) if (root / "results.json").exists() else None,
    )
    files.write_text(directory / "README.md", card)
    files.write_json(directory / "prompt.json", student.prompt_json(prompt))
    form = "as a PEFT adapter" if is_adapter else "in Hugging Face format"
    return f"the student of step {step}, {form}"


def _example(student: Student, prompt: str) -> tuple[str, bool]:
    """Returns how the student's tokenizer is called to give the tokens of an evaluation.

    Returns:
      The text, with `{question}` in it, and the value of `add_special_tokens`.
    """
    tokenizer = student.tokenizer

    def ids(text: str, question: str, special: bool = False) -> list[int]:
        text = text.replace("{question}", question)
        return tokenizer(text, add_special_tokens=special, verbose=False).input_ids

    questions = ("How many?", "7")
    records = [Record(question, question, (), "") for question in questions]
    evaluated = tokens.tokenize_questions(
        records, tokenizer, prompt=prompt, decoder_only=student.decoder_only
    )
    expected = [evaluated[i].tolist() for i in range(len(records))]
    before, after = "", tokenizer.eos_token
    if student.decoder_only:
        expected = [[*row, student.decoder_start(prompt)] for row in expected]
        first = expected[0]
        before = tokenizer.decode(first[: len(first) - len(ids(prompt, questions[0]))])
        after = ""
    for text, special in ((prompt, True), (prompt, False)):
        if [ids(text, question, special) for question in questions] == expected:
            return text, special
    return before + prompt + after, False
