"""The losses of methods, against NumPy by hand, and a teacher's distributions."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kpod_jax.baselines import distributions, mcc_kd, specialized_kd
from kpod_jax.baselines.mcc_kd import MccKd
from kpod_jax.baselines.specialized_kd import SpecializedKd
from kpod_jax.data import tokens
from kpod_jax.data.records import Record
from kpod_jax.data.tokenizers import load_tokenizer
from kpod_jax.training import train_step
from kpod_jax.utils.errors import UserError
from tests.baselines.conftest import RECORDS, make
from tests.conftest import TEMPLATES
from tests.tools import batch_source
from tests.weighting import tiny


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_symmetric_kl_is_the_mean_of_both_directions():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    # 0.5 log 2 + 0.25 log 0.5 one way, and as much the other.
    expected = 0.25 * math.log(2)
    found = mcc_kd.symmetric_kl(jnp.log(p), jnp.log(q))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    p, q = np.array([0.9, 0.1]), np.array([0.5, 0.5])
    one, other = (float((a * np.log(a / b)).sum()) for a, b in ((p, q), (q, p)))
    assert abs(one - other) > 0.1
    found = mcc_kd.symmetric_kl(jnp.log(p), jnp.log(q))
    np.testing.assert_allclose(found, (one + other) / 2, rtol=1e-6)


def value_of(loss, module):
    return jax.jit(lambda params, batch: loss(module, params, batch, None))


def on_device(batch):
    return {key: jnp.asarray(value) for key, value in batch.items()}


def logits_of(module, params, batch):
    @jax.jit
    def logits(params, *arrays):
        hidden = module.apply({"params": params}, *arrays)
        return module.apply({"params": params}, hidden, method="logits")

    keys = ("input_ids", "input_mask", "decoder_input_ids")
    return np.asarray(logits(params, *(jnp.asarray(batch[key]) for key in keys)), np.float64)


def pair_batch(consistent=True):
    """Two rationales of one question, whose answers are 20 21, and a row that is alone."""
    answers = [[20, 21], [20, 21] if consistent else [20, 22], [23]]
    data = tiny.tokenized_set(
        [[4], [4], [5]], [[[6, 7]], [[8], [9, 10]], [[11]]], answers, tuple(named(3))
    )
    method = make(MccKd, consistency_weight=0.5)
    examples = [example(record, group) for record, group in zip(data.records, "aab", strict=True)]
    objective = method.objective(data, examples)
    groups = mcc_kd.pairs.group_by_name([e.group for e in examples])
    source = batch_source(
        data, 4, 0, pad_id=0, decoder_start_id=0, groups=groups, arrays=objective.arrays
    )
    return objective, source


def named(count):
    return [Record(f"{i}", "", ("",), "") for i in range(count)]


def example(record, group):
    return specialized_kd.Example(record, "", group=group)


@pytest.mark.parametrize("consistent", [True, False])
def test_mcc_kds_loss_by_hand(consistent):
    objective, source = pair_batch(consistent)
    batch = source[0]
    module, params = tiny.t5(), tiny.params(tiny.t5())
    total, plain = value_of(objective.loss, module)(params, on_device(batch))
    log_p = log_softmax(logits_of(module, params, batch))
    nll = -np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
    cross_entropy = nll[batch["supervised"]].sum()
    np.testing.assert_allclose(plain, cross_entropy, rtol=1e-5)
    divergence = 0.0
    one, other = (batch["index"].tolist().index(i) for i in (0, 1))
    assert abs(one - other) == 1 and min(one, other) % 2 == 0
    if consistent:  # 20, 21 and EOS, behind rationales of 2 and of 3 tokens.
        for k in range(3):
            p, q = log_p[one, 2 + k], log_p[other, 3 + k]
            divergence += ((np.exp(p) - np.exp(q)) * (p - q)).sum() / 2
        assert divergence > 1e-3
    # λ times the mean over the answers' positions is to the mean over tokens as these are many:
    # a pair of rows has 11 or 6 tokens, and 3 or 2 positions.
    weight = 0.5 * (11 + 6) / (3 + 2)
    np.testing.assert_allclose(total, cross_entropy + weight * divergence, rtol=1e-5)


def test_pairs_stay_together_in_micro_batches():
    """The update is the same however many parts a batch is worked off in."""
    rng = np.random.default_rng(0)
    rationales = [[rng.integers(4, 64, n).tolist()] for n in (2, 5, 3, 4, 6, 2, 3, 5)]
    answers = [[20 + i // 2] for i in range(8)]
    data = tiny.tokenized_set([[4]] * 8, rationales, answers, tuple(named(8)))
    examples = [example(record, f"{i // 2}") for i, record in enumerate(data.records)]
    objective = make(MccKd, consistency_weight=1.0).objective(data, examples)
    groups = mcc_kd.pairs.group_by_name([e.group for e in examples])
    source = batch_source(
        data, 8, 0, pad_id=0, decoder_start_id=0, buckets=1, groups=groups, arrays=objective.arrays
    )
    batch = on_device({key: value for key, value in source[0].items() if key != "index"})
    found = []
    for parts in (1, 4):
        optimizer = optax.sgd(1.0)
        step = train_step.make_train_step(
            tiny.t5(),
            optimizer,
            lambda step: 0.0,
            micro_batches=parts,
            loss=objective.loss,
            group_size=2,
        )
        params = tiny.params(tiny.t5())
        state = {"params": params, "opt_state": optimizer.init(params), "step": jnp.zeros((), int)}
        state, metrics = step(state, {}, batch, jax.random.key(0))
        found.append((state["params"], float(metrics["loss"])))
        assert metrics["loss"] > metrics["token_loss"]
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found[0][0], found[1][0])


def soft_batch(tokens, probabilities):
    batch = next(
        iter(batch_source(tiny.random_set(4, 0), 4, 0, pad_id=0, decoder_start_id=0).in_order())
    )
    return batch | {"teacher_tokens": tokens(batch), "teacher_probabilities": probabilities(batch)}


def test_the_distribution_loss_is_cross_entropy_where_the_teacher_is_one_hot():
    def one_hot(batch):
        p = np.zeros((*batch["targets"].shape, 3), np.float32)
        p[..., 1] = 1
        return p

    batch = soft_batch(
        lambda b: np.stack([b["targets"] * 0 + 7, b["targets"], b["targets"] * 0], -1), one_hot
    )
    module, params = tiny.t5(), tiny.params(tiny.t5())
    soft, hard = (
        jax.jit(jax.value_and_grad(value_of(loss, module), has_aux=True))(params, on_device(batch))
        for loss in (specialized_kd.distribution_loss, train_step.cross_entropy)
    )
    np.testing.assert_allclose(soft[0][0], hard[0][0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), soft[1], hard[1])


def test_the_distribution_loss_is_kl_from_the_teacher_to_the_student():
    p = np.array([0.7, 0.2, 0.1], np.float32)
    batch = soft_batch(
        lambda b: np.broadcast_to(np.array([5, 9, 30]), (*b["targets"].shape, 3)).astype(np.int32),
        lambda b: np.broadcast_to(p, (*b["targets"].shape, 3)),
    )
    module, params = tiny.t5(), tiny.params(tiny.t5())
    total, _ = value_of(specialized_kd.distribution_loss, module)(params, on_device(batch))
    log_q = log_softmax(logits_of(module, params, batch))[..., [5, 9, 30]]
    expected = (p * (np.log(p) - log_q)).sum(-1)[batch["supervised"]].sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert expected > 0


def spelled(record, tokens, tops):
    return {
        "question": record.question,
        "rationale": record.rationale,
        "tokens": tokens,
        "top_logprobs": tops,
    }


def test_distributions_are_aligned_by_characters_and_scaled(build, byte_tokenizer, tmp_path):
    """The student has a token a byte, the teacher longer ones."""
    record = Record("r", "2 + 2?", ("Is 4.",), "4")
    half, tenth = math.log(0.5), math.log(0.1)
    tokens = ["I", "s", " 4", ".", " So", " 4."]  # They go on behind the rationale.
    tops = [{"I": half, "J": tenth, "It": tenth}, {"s": -0.1}, {" 4": 0.0}, {".": half}, {}, {}]
    path = tmp_path / "distributions.jsonl"
    path.write_text(json.dumps(spelled(record, tokens, tops)) + "\n")
    method = make(
        SpecializedKd,
        tokenizer=byte_tokenizer,
        distributions=str(path),
        formats=("zero_shot_answer_only", "zero_shot_chain_of_thought"),
    )
    training = build(method, [record])
    data = training.tokenized
    given = distributions.read(str(path), data, byte_tokenizer)
    # " 4" is two tokens of the student; the second has the distribution, without its space.
    assert (given.rationales, given.matched) == (1, 4)
    assert not method.notes
    letters = {chr(b): byte_tokenizer.convert_tokens_to_ids(chr(b)) for b in b"IJs4."}
    ids, p = given.tokens[1], given.probabilities[1]
    assert ids[0].tolist() == [letters["I"], letters["J"]]
    np.testing.assert_allclose(p[0], [0.5 / 0.6, 0.1 / 0.6], rtol=1e-6)
    assert (ids[1:, 0] == data.targets[1][1:]).all()
    np.testing.assert_array_equal(p[1:], [[1, 0]] * (len(p) - 1))
    # What has no rationale is one-hot.
    np.testing.assert_array_equal(given.tokens[0][:, 0], data.targets[0])
    batch = training.objective.arrays(np.array([1, -1, 0]), 64)
    assert batch["teacher_tokens"].shape == (3, 64, 2)
    np.testing.assert_array_equal(batch["teacher_tokens"][0, : len(ids)], ids)
    assert not batch["teacher_probabilities"][1].any()
    np.testing.assert_allclose(batch["teacher_probabilities"][2].sum(-1)[:5], 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": ["2", "2"]}, "has no lists 'tokens' and 'top_logprobs' of the same length"),
        ({"tokens": ["5"], "top_logprobs": [{}]}, "has 'tokens' that do not spell its 'rationale'"),
        (
            {"top_logprobs": [{"2": 0.5}]},
            "has a value in 'top_logprobs' that is not a log probability",
        ),
        ({"question": "1?"}, "has no distributions for any training rationale"),
        ({"top_logprobs": [{}]}, "no token in common"),
    ],
)
def test_distributions_that_cannot_be_used_are_named(
    build, byte_tokenizer, tmp_path, changes, said
):
    record = dataclasses.replace(RECORDS[2], steps=("2",))
    path = tmp_path / "distributions.jsonl"
    path.write_text(json.dumps(spelled(record, ["2"], [{"2": 0.0}]) | changes) + "\n")
    method = make(SpecializedKd, tokenizer=byte_tokenizer, distributions=str(path))
    with pytest.raises(UserError, match=said):
        build(method, [record, RECORDS[0]])


def test_sentencepiece_writes_a_space_where_a_text_begins(shared_data):
    tokenizer = load_tokenizer(str(shared_data / "tokenizers/t5_spiece.model"))
    record = Record("r", "q?", ("Tom has pens.",), "3")
    data, _ = tokens.tokenize(
        [record], tokenizer, **TEMPLATES, max_question_tokens=99, max_target_tokens=99
    )
    vocabulary, texts = distributions._vocabulary(tokenizer)
    own = [texts[int(i)] for i in data.targets[0][:2]]
    assert own == [" Tom", " has"]
    assert distributions._map_to_student("Tom", {"Tom": 0.0, "He": 0.0}, own[0], vocabulary) == [
        (vocabulary[" Tom"], 0.5),
        (vocabulary[" He"], 0.5),
    ]
