"""Student and answerer of different widths."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kpod_jax.weighting.answerer import Answerer
from kpod_jax.weighting.answerer_batch import make_answerer_batch
from kpod_jax.weighting.generator import Generator
from kpod_jax.weighting.objective import MaskLearner
from tests.weighting import tiny

WIDTH = 24


def test_an_answerer_of_another_width_trains_the_generator():
    assert tiny.CONFIG.d_model != WIDTH
    rng = np.random.default_rng(0)
    embeddings = jnp.asarray(rng.normal(size=(tiny.CONFIG.vocab_size, WIDTH)), jnp.float32)
    answerer = Answerer(tiny.t5(), tiny.MASK, tiny.PAD, tiny.EOS)
    learner = MaskLearner(answerer, Generator(8, 2), embeddings, alpha=0.0)
    problems = jax.tree.map(jnp.asarray, make_answerer_batch(tiny.copying(4, 0), tiny.PAD))
    answerer_params = tiny.params(answerer.module)

    @jax.jit
    def gradient(key):
        shown = embeddings[problems.rationale]
        params = learner.generator.init(key, shown, problems.rationale_mask)["params"]
        # A kept token costs nothing here: what reaches the generator comes from the answer.
        return jax.grad(
            lambda params: learner.objective(params, answerer_params, problems, key, 0.0, 1.0)[0]
        )(params)

    assert float(optax.global_norm(gradient(jax.random.key(0)))) > 1e-4
