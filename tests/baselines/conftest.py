"""What tests of methods share."""

from typing import Any

import numpy as np
import pytest

from kpod_jax.baselines import Setting, training_set
from kpod_jax.config import defaults
from kpod_jax.data import tokens
from kpod_jax.data.records import Record
from tests.data.conftest import byte_tokenizer as byte_tokenizer
from tests.data.conftest import byte_tokenizer_dir as byte_tokenizer_dir

PROMPT = "Q: {question} A: Let's think step by step."
SENTENCE = "Therefore, the answer is {answer}."
# Two questions, the first with two rationales.
RECORDS = [
    Record("a", "3 + 4, then - 1?", ("3 + 4 = 7. ", "7 - 1 = 6."), "6"),
    Record("a#2", "3 + 4, then - 1?", ("First 7. ", "So 6."), "6"),
    Record("b", "2 + 2?", ("2 + 2 = 4.",), "4"),
]


def make(method, data="jsonl", tokenizer: Any = None, **options):
    """A method under the default configuration, with other keys of `baseline`."""
    config = defaults.get_config()
    return method(
        Setting(
            options=config.baseline.to_dict() | options,
            data=data,
            answer_kind="number",
            step_separator="",
            prompt=PROMPT,
            answer_template=SENTENCE,
            seed=0,
            token_lengths=lambda texts: np.array([len(text) for text in texts]),
            max_question_tokens=1000,
            tokenizer=tokenizer,
        )
    )


@pytest.fixture
def build(byte_tokenizer):
    """From a method and records to its training set, in bytes."""

    def make_set(method, records=RECORDS, decoder_only=False, **limits):
        def tokenize(examples, prompts, sentences):
            return tokens.tokenize(
                examples,
                byte_tokenizer,
                prompt=prompts,
                answer_template=sentences,
                decoder_only=decoder_only,
                need_rationale=False,
                **{"max_question_tokens": 1000, "max_target_tokens": 1000} | limits,
            )

        return training_set.make_from_method(method, records, tokenize)

    return make_set
