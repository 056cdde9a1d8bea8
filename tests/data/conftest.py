"""A tokenizer of single bytes: what it does to a text can be said without it."""

import pathlib

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from kpod_jax.data import builders
from kpod_jax.data.tokenizers import load_tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer_dir(tmp_path_factory) -> pathlib.Path:
    """A directory with tokenizer.json alone, which has an end and a padding token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    directory = tmp_path_factory.mktemp("byte_tokenizer")
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture
def few_problems(monkeypatch):
    """The built-in task's data set with 20 problems a split."""
    sizes = dict.fromkeys(builders.ARITHMETIC_SIZES, 20)
    monkeypatch.setattr(builders, "ARITHMETIC_SIZES", sizes)


@pytest.fixture(scope="session")
def byte_tokenizer(byte_tokenizer_dir):
    return load_tokenizer(str(byte_tokenizer_dir))
