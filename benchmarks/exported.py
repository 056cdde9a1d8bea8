r"""An exported student in torch: whether it answers as the run that it comes from.

    python -m benchmarks.exported --run=DIR

`DIR/export` is loaded by transformers and asked the questions of `DIR/predictions/test.jsonl`,
greedily and in float32; printed is how many generations and answers are the same.
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

_ROWS = 20  # Questions at a time.


def main(argv: list[str]) -> None:
    """Compares."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument: {argv[1]}")
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
    found = [answers.extract_answer(text, kind) for text in texts]
    same = [text == row["prediction"] for text, row in zip(texts, rows, strict=True)]
    alike = [one == row["extracted"] for one, row in zip(found, rows, strict=True)]
    right = sum(
        answers.answers_equal(f, row["gold"], kind) for f, row in zip(found, rows, strict=True)
    )
    print(f"same generation: {sum(same)} of {len(rows)}; same answer: {sum(alike)} of {len(rows)}")
    print(f"correct: {right} in torch, {sum(row['correct'] for row in rows)} here")
    for row, text, equal in zip(rows, texts, alike, strict=True):
        if not equal:
            print(f"\n{row['question']}\n  here:  {row['prediction']}\n  torch: {text}")


def generations(
    directory: pathlib.Path, prompt: str, questions: list[str], max_new_tokens: int
) -> list[str]:
    """What the exported student writes.

    Args:
      directory: of the export.
      prompt: in the student's form, with {question}.
      questions: to put there.
      max_new_tokens: of each text.
    """
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory, padding_side="left")
    loaded: Any = transformers.AutoConfig.from_pretrained(directory)
    pair = loaded.is_encoder_decoder
    kind: Any = transformers.AutoModelForSeq2SeqLM if pair else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(directory, dtype=torch.float32).eval()
    # A chat template brings the beginning token along.
    begins = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
    result = []
    with torch.inference_mode(), Progress(len(questions), "Asking", unit="questions") as progress:
        for first in range(0, len(questions), _ROWS):
            asked = [prompt.replace("{question}", q) for q in questions[first : first + _ROWS]]
            inputs = tokenizer(
                asked, return_tensors="pt", padding=True, add_special_tokens=not begins
            )
            ids = model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
            ids = ids if pair else ids[:, inputs["input_ids"].shape[1] :]
            texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
            result += [text.strip() for text in texts]
            progress.update(len(asked))
    return result


if __name__ == "__main__":
    flags.mark_flag_as_required("run")
    app.run(main)
