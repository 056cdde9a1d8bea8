"""The README.md of an exported student: what it is, how it was made, how it is asked."""

import json
from collections.abc import Mapping
from typing import Any

import kpod_jax
from kpod_jax import baselines
from kpod_jax.config.defaults import Config, method_name

_CARD = """\
---
library_name: {library}
base_model: {base_model}
tags:
- chain-of-thought
- distillation
- kpod
---

# {title}

A student of {base_model_text}, distilled on `{data}` by {method} (seed {seed}, {step} steps) with
KPOD-JAX {version}.

{results}

## Use

{use}

Prompts are made by the template

```text
{prompt}
```

and the final answer stands after `{answer_template}`.

## Settings

```json
{settings}
```
"""
_USE = """\
```python
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
model = {auto}.from_pretrained("DIRECTORY")
inputs = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens={tokens})[0]))
```"""


def model_card(
    config: Config,
    *,
    prompt: str,
    step: int,
    decoder_only: bool,
    is_adapter: bool,
    results: Mapping[str, Any] | None,
) -> str:
    """Markdown with the front matter that the Hugging Face hub reads.

    Args:
      config: of the run.
      prompt: the template that prompts were made by.
      step: of the checkpoint that was exported.
      decoder_only: which class of transformers loads it.
      is_adapter: whether it is a PEFT adapter.
      results: of `results.json`, or None where the run was not evaluated.
    """
    student = config.student
    measured = "It was not evaluated."
    if results is not None:
        low, high = results["interval"]
        measured = (
            f"Accuracy on {results['split']}: {results['accuracy']:.1%} ({results['correct']} of "
            f"{results['total']}; 95 % interval {low:.1%} to {high:.1%})"
            + (f", at step {results['checkpoint_step']}." if "checkpoint_step" in results else ".")
        )
    auto = "AutoModelForCausalLM" if decoder_only else "AutoModelForSeq2SeqLM"
    example = json.dumps(prompt.replace("{question}", "QUESTION"))
    use = _USE.format(auto=auto, prompt=example, tokens=student.max_target_tokens)
    if is_adapter:
        use += "\n\n`transformers` loads adapters with the `peft` package installed."
    name = method_name(config.method)
    # What made the student; where its maker keeps files is nobody's business.
    sections = ("student", "weighting", "difficulty", "schedule", "distill")
    settings = {section: config[section].to_dict() for section in sections}
    if (kind := baselines.class_of(config.method)) is not None:
        own = [key for key in kind.keys if key not in kind.file_keys]
        settings["baseline"] = {key: config.baseline[key] for key in own}
    return _CARD.format(
        library="peft" if is_adapter else "transformers",
        base_model=json.dumps(student.model),
        base_model_text=f"`{student.model}`",
        title=f"{student.model.rstrip('/').rsplit('/', 1)[-1]}, distilled by {name}",
        data=config.data.name,
        method=name,
        seed=config.seed,
        step=step,
        version=kpod_jax.__version__,
        results=measured,
        use=use,
        prompt=prompt,
        answer_template=student.answer_template,
        settings=json.dumps(settings, indent=2, ensure_ascii=False),
    )
