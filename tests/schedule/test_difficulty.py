import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpod_jax.data.records import Ragged
from kpod_jax.parallel import sharding
from kpod_jax.schedule import difficulty
from kpod_jax.training import forward
from tests.tools import batch_source
from tests.weighting import tiny


def test_step_difficulty_by_hand():
    data = tiny.tokenized_set([[5], [5]], [[[10, 11], [12]], [[13], [14, 15, 16]]], [[4], [4, 5]])
    nll = Ragged.from_list([[1.0, 3.0, 5.0], [2.0, 1.0, 2.0, 6.0]], np.float32)
    plain = difficulty.step_difficulty(nll, None, data)
    np.testing.assert_allclose(plain[0], [2.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(plain[1], [2.0, 3.0], rtol=1e-6)

    # Softmax within a step of log 1 and log 3 is (1/4, 3/4); of log 1, log 1, log 2 it is
    # (1/4, 1/4, 1/2).
    log = np.log
    w = Ragged.from_list([[log(1), log(3), 0.7], [0.1, log(1), log(1), log(2)]], np.float32)
    weighted = difficulty.step_difficulty(nll, w, data)
    np.testing.assert_allclose(weighted[0], [0.25 * 1 + 0.75 * 3, 5.0], rtol=1e-6)
    np.testing.assert_allclose(weighted[1], [2.0, 0.25 * 1 + 0.25 * 2 + 0.5 * 6], rtol=1e-6)
    np.testing.assert_array_equal(weighted.lengths, data.num_steps)


@pytest.mark.parametrize(("batch_size", "buckets", "devices"), [(2, 4, 1), (8, 1, 8)])
def test_rationale_losses_are_those_of_each_example_alone(batch_size, buckets, devices):
    data, module = tiny.random_set(5, seed=1), tiny.t5()
    params = tiny.params(module)
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    source = batch_source(
        data, batch_size, 0, pad_id=tiny.PAD, decoder_start_id=tiny.PAD, buckets=buckets
    )
    run = functools.partial(jax.jit(module.apply, static_argnames="method"), {"params": params})
    done = []
    nll = difficulty.rationale_losses(
        module, params, source, data, mesh, batch_size=batch_size, progress=done.append
    )
    np.testing.assert_array_equal(nll.lengths, data.rationale_lengths)
    assert sum(done) == 5
    alone = []
    for i in range(5):
        question, target = jnp.array(data.questions[i])[None], jnp.array(data.targets[i])[None]
        inputs = jnp.concatenate([jnp.array([[tiny.PAD]]), target[:, :-1]], axis=1)
        hidden = run(question, question >= 0, inputs)
        log_probs = jax.nn.log_softmax(run(hidden, method="logits"))
        expected = -jnp.take_along_axis(log_probs, target[..., None], -1)[0, :, 0]
        np.testing.assert_allclose(nll[i], expected[: data.rationale_lengths[i]], atol=2e-5)
        alone += expected.tolist()
    # The answer's tokens as well, and each token as much as any other.
    assert len(alone) > nll.lengths.sum()
    mean = forward.mean_target_loss(module, params, source, mesh, batch_size=batch_size)
    np.testing.assert_allclose(mean, np.mean(alone), rtol=1e-5)
