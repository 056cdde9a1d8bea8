r"""Checks that an exported student gives the same answers in torch as in its run.

    python -m benchmarks.exported --run=DIR

Loads `DIR/export` with transformers, answers the questions of `DIR/predictions/test.jsonl` greedily
in float32, and prints how many generations and answers agree.
"""

import pathlib
from typing import Any

import torch
import transformers
from absl import app, flags

from benchmarks import tables
from kpod_jax import baselines
from kpod_jax.config.loading import load_config
from kpod_jax.data import answers, sources
from kpod_jax.models.student import load_student
from kpod_jax.report.run import read_jsonl
from kpod_jax.utils.progress import Progress

_ROWS = 20  # Questions per batch.


def main(argv: list[str]) -> None:
    """Prints the comparison."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument: {argv[1]}")
    print_comparison(pathlib.Path(str(tables.RUN.value)))


def print_comparison(workdir: pathlib.Path) -> None:
    """Prints the counts, and the questions whose answers differ."""
    config = load_config(workdir)
    prompt = baselines.prompt_of(config, load_student(config.student, config.seed))
    rows = read_jsonl(workdir / "predictions/test.jsonl")
    kind = sources.answer_kind(config.data.name, config.data.answer_kind)
    questions = [row["question"] for row in rows]
    length = config.eval.max_new_tokens or config.student.max_target_tokens
    texts = generations(workdir / "export", prompt, questions, length)
    extracted = [answers.extract_answer(text, kind) for text in texts]
    same_text = [text == row["prediction"] for text, row in zip(texts, rows, strict=True)]
    same_answer = [a == row["extracted"] for a, row in zip(extracted, rows, strict=True)]
    correct = sum(
        answers.answers_equal(a, row["gold"], kind) for a, row in zip(extracted, rows, strict=True)
    )
    print(
        f"same generation: {sum(same_text)} of {len(rows)}; "
        f"same answer: {sum(same_answer)} of {len(rows)}"
    )
    print(f"correct: {correct} in torch, {sum(row['correct'] for row in rows)} here")
    for row, text, equal in zip(rows, texts, same_answer, strict=True):
        if not equal:
            print(f"\n{row['question']}\n  here:  {row['prediction']}\n  torch: {text}")


def generations(
    directory: pathlib.Path, prompt: str, questions: list[str], max_new_tokens: int
) -> list[str]:
    """Returns the generations of the exported student.

    Args:
      directory: directory of the export.
      prompt: prompt template with {question}.
      questions: questions to fill in.
      max_new_tokens: maximum number of tokens per generation.
    """
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory, padding_side="left")
    config: Any = transformers.AutoConfig.from_pretrained(directory)
    seq2seq = config.is_encoder_decoder
    model_class: Any = (
        transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    )
    model = model_class.from_pretrained(directory, dtype=torch.float32).eval()
    # A chat template already includes BOS.
    has_bos = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
    result = []
    bar = Progress(len(questions), "Generating", unit="questions")
    with torch.inference_mode(), bar as progress:
        for first in range(0, len(questions), _ROWS):
            prompts = [prompt.replace("{question}", q) for q in questions[first : first + _ROWS]]
            inputs = tokenizer(
                prompts, return_tensors="pt", padding=True, add_special_tokens=not has_bos
            )
            ids = model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
            ids = ids if seq2seq else ids[:, inputs["input_ids"].shape[1] :]
            texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
            result += [text.strip() for text in texts]
            progress.update(len(prompts))
    return result


if __name__ == "__main__":
    flags.mark_flag_as_required("run")
    app.run(main)
