"""A T5 of a few hundred parameters and data sets made by hand, for tests of losses and training."""

import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kpod_jax.data.records import Ragged, Record
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.models.student import Student, student_settings
from kpod_jax.models.t5 import T5
from kpod_jax.models.t5_config import T5Config

CONFIG = T5Config(
    vocab_size=64,
    d_model=16,
    d_kv=8,
    d_ff=32,
    num_layers=1,
    num_decoder_layers=1,
    num_heads=2,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=16,
    dropout_rate=0.0,
    tie_word_embeddings=False,
)
PAD, EOS, MASK = 0, 1, 2
KEYS, FILLERS = range(4, 10), range(10, 16)


def t5() -> T5:
    return T5(CONFIG, scan_layers=False)


def params(module: Any, seed: int = 0):
    """Random parameters, without compiling their initialisation."""
    ids = jnp.zeros((1, 4), jnp.int32)
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), ids, ids == 0, ids))["params"]
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape)
        std = 1.0 if path[-1].key == "embedding" else 0.25
        return jnp.asarray(rng.normal(0, std, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(value, shapes)


class TinyStudent(Student):
    def load(self, mesh):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract(mesh))
        return jax.device_put(params(self.module, self.seed), shardings)


def student(vocabulary=("<pad>", "</s>", "<extra_id_0>")) -> Student:
    """A student of random weights, whose tokenizer is a vocabulary alone."""
    tokens = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = types.SimpleNamespace(get_vocab=lambda: tokens, pad_token_id=PAD)
    return TinyStudent(t5(), CONFIG, tokenizer, student_settings("", init="random"), seed=0)


def tokenized_set(questions, rationales, answers, records=None) -> TokenizedSet:
    """A set of hand-made tokens.

    Args:
      questions: lists of tokens without EOS.
      rationales: for each example a list of steps, which are lists of tokens.
      answers: lists of tokens without EOS; the answer sentence is the same.
      records: default empty ones.
    """
    flat = [[token for step in steps for token in step] for steps in rationales]
    counts = [len(steps) for steps in rationales]
    step_ids = [
        [k for k, step in enumerate(steps) for _ in step] + [len(steps)] * (len(answer) + 1)
        for steps, answer in zip(rationales, answers, strict=True)
    ]
    if records is None:
        records = tuple(Record(f"{i}", "", ("",), "") for i in range(len(questions)))
    spans = [[(2 * j, 2 * j + 1) for j in range(len(tokens))] for tokens in flat]
    return TokenizedSet(
        records=records,
        questions=Ragged.from_list([[*q, EOS] for q in questions], np.int32),
        targets=Ragged.from_list(
            [[*r, *a, EOS] for r, a in zip(flat, answers, strict=True)], np.int32
        ),
        steps=Ragged.from_list(step_ids, np.int32),
        answers=Ragged.from_list([[*a, EOS] for a in answers], np.int32),
        num_steps=np.array(counts, np.int32),
        rationale_lengths=np.array([len(r) for r in flat], np.int32),
        rationale_char_spans=Ragged.from_list(spans, np.int32),
    )


def copying(count: int, seed: int) -> TokenizedSet:
    """The answer is the one key token among the fillers of a rationale, near its start."""
    rng = np.random.default_rng(seed)
    questions, rationales, answers, records = [], [], [], []
    for i in range(count):
        tokens = rng.choice(FILLERS, rng.integers(4, 7)).tolist()
        place = int(rng.integers(2))
        tokens[place] = int(rng.choice(KEYS))
        questions.append([int(rng.choice(FILLERS))])
        rationales.append([tokens[:2], tokens[2:]])
        answers.append([tokens[place]])
        # As `tokenized_set` has it, token j is at character 2 j.
        spans = ((2 * place, 2 * place + 1),)
        records.append(Record(f"{i}", "", ("",), "", keypoints=spans))
    return tokenized_set(questions, rationales, answers, tuple(records))


def random_set(count: int, seed: int) -> TokenizedSet:
    """Rationales of 1 to 4 steps of 1 to 4 tokens."""
    rng = np.random.default_rng(seed)

    def tokens(low, high):
        return rng.integers(4, 64, rng.integers(low, high + 1)).tolist()

    return tokenized_set(
        [tokens(3, 7) for _ in range(count)],
        [[tokens(1, 4) for _ in range(rng.integers(1, 5))] for _ in range(count)],
        [tokens(1, 2) for _ in range(count)],
    )
