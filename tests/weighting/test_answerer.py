import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpod_jax.models.llama import Llama
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.weighting.answerer import Answerer
from kpod_jax.weighting.answerer_batch import AnswererBatch, make_answerer_batch
from tests.weighting import tiny


@pytest.fixture(scope="module")
def params():
    return tiny.params(tiny.t5(), seed=3)


@pytest.fixture(scope="module")
def answerer():
    return Answerer(tiny.t5(), tiny.MASK, tiny.PAD, tiny.EOS)


def problems(count=3, seed=0) -> AnswererBatch:
    return jax.tree.map(jnp.asarray, make_answerer_batch(tiny.random_set(count, seed), tiny.PAD))


_losses = jax.jit(lambda answerer, *arguments: answerer.losses(*arguments), static_argnums=0)


def run(answerer, params, rows, keep, prefix):
    return np.asarray(_losses(answerer, params, rows, jnp.asarray(keep), jnp.asarray(prefix)))


def test_the_loss_is_that_of_the_answer_after_question_and_masked_prefix(answerer, params):
    data = tiny.tokenized_set([[5, 6, 7]], [[[20, 21], [22, 23, 24]]], [[30, 31]])
    rows = make_answerer_batch(data, tiny.PAD)
    keep = np.zeros(rows.rationale.shape, np.float32)
    keep[0, [0, 2, 3]] = 1
    loss = run(answerer, params, rows, keep, [4])

    # The same with ids: the question, then r_1 ... r_4 with r_2 masked, and EOS at the end of both.
    ids = jnp.array([[5, 6, 7, 20, tiny.MASK, 22, 23, tiny.EOS]])
    inputs, answer = jnp.array([[tiny.PAD, 30, 31]]), jnp.array([30, 31, tiny.EOS])
    variables = {"params": params}

    @jax.jit
    def logits(variables):
        hidden = answerer.module.apply(variables, ids, ids >= 0, inputs)
        return answerer.module.apply(variables, hidden, method="logits")

    log_probs = jax.nn.log_softmax(logits(variables))
    np.testing.assert_allclose(loss, -log_probs[0, jnp.arange(3), answer].sum(), rtol=1e-5)


def test_padding_on_either_side_changes_nothing(answerer, params):
    rows = problems()
    keep = jax.random.uniform(jax.random.key(0), rows.rationale.shape)
    prefix = jnp.minimum(jnp.array([1, 3, 5]), rows.rationale_mask.sum(axis=1))
    narrow = run(answerer, params, rows, keep, prefix)

    def pad(array, left, right, value):
        return jnp.pad(array, [(0, 0), (left, right)], constant_values=value)

    wide = AnswererBatch(
        question=pad(rows.question, 5, 0, 9),
        question_mask=pad(rows.question_mask, 5, 0, False),
        rationale=pad(rows.rationale, 0, 6, 9),
        rationale_mask=pad(rows.rationale_mask, 0, 6, False),
        step_ends=pad(rows.step_ends, 0, 6, False),
        answer=pad(rows.answer, 0, 3, 9),
        answer_mask=pad(rows.answer_mask, 0, 3, False),
    )
    again = run(answerer, params, wide, pad(keep, 0, 6, 0.5), prefix)
    np.testing.assert_allclose(again, narrow, rtol=1e-5)


def test_only_the_first_k_tokens_are_seen(answerer, params):
    data = tiny.tokenized_set([[5, 6, 7]], [[[20, 21], [22, 23]]], [[30]])
    rows = make_answerer_batch(data, tiny.PAD)
    keep = np.ones(rows.rationale.shape, np.float32)
    first = run(answerer, params, rows, keep, [2])

    def changed(place):
        rationale = rows.rationale.copy()  # pyright: ignore[reportAttributeAccessIssue]
        rationale[0, place] = 40
        return run(answerer, params, dataclasses.replace(rows, rationale=rationale), keep, [2])

    np.testing.assert_array_equal(changed(2), first)
    np.testing.assert_array_equal(changed(3), first)
    assert changed(1) != first
    # Nor does a mask beyond them matter, while one inside does.
    keep[0, 2:] = 0
    np.testing.assert_array_equal(run(answerer, params, rows, keep, [2]), first)
    keep[0, 1] = 0
    assert run(answerer, params, rows, keep, [2]) != first


def test_the_gradient_of_the_answers_loss_reaches_the_seen_masks_alone(answerer, params):
    rows = problems()
    keep = jnp.full(rows.rationale.shape, 0.5)
    n = rows.rationale_mask.sum(axis=1)
    prefix = jnp.maximum(1, n - 1)
    gradient = np.asarray(
        jax.jit(jax.grad(lambda keep: answerer.losses(params, rows, keep, prefix).sum()))(keep)
    )
    seen = np.arange(keep.shape[1]) < np.asarray(prefix)[:, None]
    assert (gradient[seen] != 0).all()
    assert (gradient[~seen] == 0).all()


def test_repeat_keeps_copies_of_a_row_together():
    rows = problems(2)
    twice = rows.repeat(2)
    np.testing.assert_array_equal(twice.question, np.asarray(rows.question)[[0, 0, 1, 1]])
    np.testing.assert_array_equal(twice.answer_mask, np.asarray(rows.answer_mask)[[0, 0, 1, 1]])


def llama(scan_layers: bool, window: int | None = None) -> Answerer:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        sliding_window=window,
    )
    module = Llama(config, scan_layers=scan_layers)
    return Answerer(module, tiny.MASK, tiny.EOS, None, causal=True)


CAUSAL = {
    "llama": llama(False),
    "llama, scanned": llama(True),
    "llama, window": llama(False, window=6),
    "t5, causal": Answerer(tiny.t5(), tiny.MASK, tiny.PAD, None, causal=True),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_all_prefixes_in_one_pass_are_each_by_itself(name):
    answerer, rows = CAUSAL[name], problems()
    params = tiny.params(answerer.module, seed=3)
    keep = jax.random.uniform(jax.random.key(0), rows.rationale.shape)
    count = rows.rationale.shape[1]
    n_B = np.asarray(rows.rationale_mask.sum(axis=1))
    prefix_BxP = jnp.broadcast_to(jnp.arange(1, count + 1), (len(n_B), count))

    @jax.jit
    def at_once(keep):
        return answerer.prefix_losses(params, rows, keep, prefix_BxP)

    @jax.jit
    def cut(keep, k):
        """The rationale ends after k tokens for good: nothing else is there to be seen."""
        short = dataclasses.replace(
            rows, rationale_mask=rows.rationale_mask & (jnp.arange(count) < k)
        )
        return answerer.losses(params, short, keep, jnp.full(len(n_B), count))

    whole = np.stack([cut(keep, k) for k in range(1, count + 1)], axis=1)
    np.testing.assert_allclose(at_once(keep), whole, rtol=1e-5)
    assert np.ptp(whole, axis=1).max() > 1e-3
    gradient = jax.jit(jax.grad(lambda keep: at_once(keep).sum()))(keep)
    of_one = jax.jit(jax.grad(lambda keep, k: cut(keep, k).sum()))
    one_by_one = sum(of_one(keep, k) for k in range(1, count + 1))
    np.testing.assert_allclose(gradient, one_by_one, rtol=1e-4, atol=1e-5)


def test_prefixes_read_at_once_have_no_eos():
    with pytest.raises(ValueError, match="EOS"):
        Answerer(tiny.t5(), tiny.MASK, tiny.PAD, tiny.EOS, causal=True)
