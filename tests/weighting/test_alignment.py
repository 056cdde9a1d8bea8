import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kpod_jax.data import tokens
from kpod_jax.data.records import Ragged, Record
from kpod_jax.data.tokenizers import load_tokenizer
from kpod_jax.models.llama import Llama
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.models.student import Student, student_settings
from kpod_jax.models.t5 import T5
from kpod_jax.utils.errors import UserError
from kpod_jax.weighting import answerer_model
from kpod_jax.weighting.alignment import Reading, align
from kpod_jax.weighting.answerer import Answerer
from kpod_jax.weighting.answerer_batch import make_answerer_batch, take
from tests.weighting import test_weigh, tiny

BUILT_IN = "kpod_jax/assets/tiny_t5"


def spans(*rows):
    return Ragged.from_list([np.array(row, np.int32).reshape(-1, 2) for row in rows], np.int32)


def test_alignment_by_hand():
    # "Tom has 12": the student has To|m|has|1|2, the answerer Tom|has|12.
    student = spans([(0, 2), (2, 3), (4, 7), (8, 9), (9, 10)], [(0, 3)])
    answerer = spans([(0, 3), (4, 7), (8, 10)], [(0, 1), (1, 2), (2, 3)])
    starts, ends = align(student, answerer)
    assert starts.tolist() == [0, 2, 3, 0, 0, 0]
    assert ends.tolist() == [2, 3, 5, 1, 1, 1]


def test_the_bytes_of_a_character_belong_together():
    # "é=1": the student has two byte tokens for é.
    student = spans([(0, 1), (0, 1), (1, 2), (2, 3)])
    starts, ends = align(student, spans([(0, 2), (2, 3)]))
    assert (starts.tolist(), ends.tolist()) == ([0, 3], [3, 4])
    starts, ends = align(spans([(0, 2), (2, 3)]), student)
    assert (starts.tolist(), ends.tolist()) == ([0, 0, 0, 1], [1, 1, 1, 2])


def test_whitespace_belongs_to_the_token_before_it_or_its_equal():
    # "a\nb": the answerer has a token for the line break, whose span is empty.
    starts, ends = align(spans([(0, 1), (2, 3)]), spans([(0, 1), (2, 2), (2, 3)]))
    assert (starts.tolist(), ends.tolist()) == ([0, 0, 1], [1, 1, 2])
    own = spans([(0, 1), (2, 2), (2, 3)])
    starts, ends = align(own, own)
    assert (starts.tolist(), ends.tolist()) == ([0, 1, 2], [1, 2, 3])


@pytest.fixture(scope="module")
def tokenizers_(byte_tokenizer, shared_data):
    files = [shared_data / f"tokenizers/{name}.model" for name in ("t5_spiece", "llama_tokenizer")]
    return [byte_tokenizer, load_tokenizer(BUILT_IN), *(load_tokenizer(str(f)) for f in files)]


def rationales(tokenizer, texts):
    records = [Record(f"{i}", "?", (text,), "7") for i, text in enumerate(texts)]
    limits: dict[str, Any] = {"max_question_tokens": 1 << 30, "max_target_tokens": 1 << 30}
    return tokens.tokenize(
        records, tokenizer, prompt="{question}", answer_template="So {answer}.", **limits
    )


TEXT = st.text("aT1 27+=.÷é日😀\u0301{<\n\t", min_size=1, max_size=30)


@settings(deadline=None, max_examples=30)
@given(st.lists(TEXT, min_size=1, max_size=3))
def test_every_token_is_aligned_with_all_that_share_a_character(tokenizers_, texts):
    for student in tokenizers_:
        for answerer in tokenizers_:
            records, _ = rationales(student, texts)
            read, unread = rationales(answerer, [record.rationale for record in records.records])
            if not records.records or unread:
                continue
            starts, ends = align(records.rationale_char_spans, read.rationale_char_spans)
            starts = Ragged.from_lengths(starts, read.rationale_lengths)
            ends = Ragged.from_lengths(ends, read.rationale_lengths)
            for i, record in enumerate(records.records):
                own, other = records.rationale_char_spans[i], read.rationale_char_spans[i]
                assert (np.diff(ends[i]) >= 0).all()
                for (a, b), start, end in zip(other, starts[i], ends[i], strict=True):
                    assert 0 <= start <= end <= len(own)
                    sharing = [j for j, (c, d) in enumerate(own) if max(a, c) < min(b, d)]
                    if sharing:
                        assert start <= sharing[0] and end == sharing[-1] + 1
                    assert start < end or not record.rationale[:b].strip()


def test_masks_are_multiplied_and_differentiable():
    reading = Reading(
        tokens=jnp.zeros((1, 4), jnp.int32),
        mask=jnp.array([[True, True, True, False]]),
        starts=jnp.array([[0, 2, 2, 0]]),
        ends=jnp.array([[2, 2, 5, 0]]),
        width=3,
    )
    keep = jnp.array([[0.5, 0.25, 1.0, 1.0, 0.0]])
    np.testing.assert_allclose(reading.keep(keep), [[0.125, 1.0, 0.0, 1.0]])
    gradient = jax.grad(lambda keep: reading.keep(keep).sum())(keep)
    np.testing.assert_allclose(gradient, [[0.25, 0.5, 0.0, 0.0, 1.0]])
    assert reading.lengths(jnp.array([[1, 2, 4, 5]])).tolist() == [[0, 2, 2, 3]]


def permuted(seed):
    """A permutation of the vocabulary of `tiny` that leaves the special tokens."""
    order = np.arange(tiny.CONFIG.vocab_size)
    order[4:] = np.random.default_rng(seed).permutation(order[4:])
    return order


@pytest.mark.parametrize("causal", [False, True])
def test_tokenizers_that_split_alike_give_the_same_losses(causal):
    data, order = tiny.random_set(4, 0), permuted(1)
    renamed = dataclasses.replace(
        data,
        **{
            name: dataclasses.replace(part, values=order[part.values].astype(np.int32))
            for name in ("questions", "targets", "answers")
            if (part := getattr(data, name))
        },
    )
    params = tiny.params(tiny.t5())
    inverse = np.argsort(order)
    moved = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf[inverse] if path[-1].key == "embedding" and len(leaf) == 64
        else leaf[:, inverse] if "lm_head" in str(path) else leaf,
        params,
    )  # fmt: skip
    answerer = Answerer(tiny.t5(), tiny.MASK, tiny.PAD, None if causal else tiny.EOS, causal)
    same = jax.tree.map(jnp.asarray, make_answerer_batch(data, tiny.PAD))
    other = jax.tree.map(jnp.asarray, make_answerer_batch(data, tiny.PAD, renamed, tiny.PAD))
    assert other.reading is not None and other.reading.width == 1
    keep = jax.random.uniform(jax.random.key(0), same.rationale.shape)
    prefixes = jnp.array([[1, 2, 5]] * 4)

    def losses(keep, params, rows):
        return answerer.prefix_losses(params, rows, keep, prefixes)

    expected = losses(keep, params, same)
    np.testing.assert_allclose(losses(keep, moved, other), expected, rtol=2e-6)
    gradients = [
        jax.grad(lambda keep, p=p, rows=rows: losses(keep, p, rows).sum())(keep)
        for p, rows in ((params, same), (moved, other))
    ]
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-6)


class LoadedStudent(Student):
    def load(self, mesh):
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract(mesh))
        return jax.device_put(tiny.params(self.module, self.seed), shardings)


def t5_of(tokenizer) -> Student:
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = dataclasses.replace(tiny.CONFIG, vocab_size=len(tokenizer), **ids)
    return LoadedStudent(T5(config), config, tokenizer, student_settings("", init="random"), 0)


def llama_of(tokenizer, lora=None) -> Student:
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=512,
        **ids,
    )
    settings = student_settings("", init="random", lora=lora)
    return LoadedStudent(Llama(config, lora=lora), config, tokenizer, settings, 0)


TEXTS = [
    "She has 3 + 4 = 7 pens and then 5 * 2 = 10 more pens, which is 7 + 10 = 17 pens of hers.",
    "Then 7 * 2 = 14 pens.",
    "It is 5.",
    "So 9 - 1 = 8 is left.",
]


def records(tokenizer, questions=("How many?",) * 4):
    rows = [
        Record(f"{i}", question, (text,), "7")
        for i, (question, text) in enumerate(zip(questions, TEXTS, strict=True))
    ]
    return t5_of(tokenizer).tokenize(rows)[0]


@pytest.mark.parametrize("answerer_of", [t5_of, llama_of])
def test_an_answerer_of_another_tokenizer_weighs(
    tmp_path, monkeypatch, byte_tokenizer, answerer_of
):
    built_in = load_tokenizer(BUILT_IN)
    data = records(byte_tokenizer)
    monkeypatch.setattr(test_weigh.tiny, "student", lambda: t5_of(byte_tokenizer))
    monkeypatch.setattr(test_weigh, "HELD_OUT", data)
    config = test_weigh.settings(fit="same", min_gap=-10.0, fit_masked_steps=1, batch_size=2)
    weights = test_weigh.run(tmp_path, config, train=data, answerer=answerer_of(built_in))
    np.testing.assert_array_equal(weights.lengths, data.rationale_lengths)
    assert np.isfinite(weights.values).all() and np.ptp(weights.values) > 0


def test_records_that_the_answerer_cannot_read_get_the_mean_weight(byte_tokenizer):
    built_in = load_tokenizer(BUILT_IN)
    # The second question has a special token of the answerer.
    data = records(byte_tokenizer, ("How many?", "<extra_id_0>?", "How many?", "How many?"))
    found = answerer_model.read_records(data, t5_of(byte_tokenizer), t5_of(built_in))
    assert [record.id for record in found.tokenized.records] == ["0", "2", "3"]
    lengths = found.tokenized.rationale_lengths
    weights = Ragged.from_lengths(np.linspace(0, 1, lengths.sum(), dtype=np.float32), lengths)
    everything = answerer_model.scatter(weights, found.tokenized, data)
    np.testing.assert_array_equal(everything.lengths, data.rationale_lengths)
    np.testing.assert_array_equal(everything[2], weights[1])
    np.testing.assert_allclose(everything[1], 0.5, atol=1e-6)
    with pytest.raises(UserError, match="cannot read the records: 1: "):
        only = t5_of(byte_tokenizer).tokenize([data.records[1]])[0]
        answerer_model.read_records(only, t5_of(byte_tokenizer), t5_of(built_in))


def test_batches_of_another_tokenizer_are_cut_to_what_they_hold(byte_tokenizer):
    found = answerer_model.read_records(
        records(byte_tokenizer), t5_of(byte_tokenizer), t5_of(load_tokenizer(BUILT_IN))
    )
    whole, longest = found.batch.reading, found.batch.rationale.shape[1]
    cut = take(found.batch, np.array([2])).reading
    assert whole is not None and cut is not None and longest > 40
    # The third rationale has 8 characters of 50.
    assert cut.tokens.shape[1] < whole.tokens.shape[1]
    assert cut.mask.sum() == whole.mask[2].sum() and cut.width == whole.width


def test_the_chat_template_is_the_students_alone(monkeypatch):
    loaded = t5_of(load_tokenizer(BUILT_IN))
    loaded = dataclasses.replace(loaded, settings=student_settings("", chat=True))
    monkeypatch.setattr(answerer_model, "load_student", lambda *args, **options: loaded)
    config = types.SimpleNamespace(answerer="t5", tokenizer="", lora=student_settings("").lora)
    assert not answerer_model.load_answerer(loaded, config).settings.chat
