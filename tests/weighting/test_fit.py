import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpod_jax.config import defaults, paper
from kpod_jax.data.tokenizers import load_tokenizer
from kpod_jax.models import layout
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.parallel import sharding
from kpod_jax.weighting import answerer_model, learn, weigh
from tests.weighting import test_alignment, test_weigh

LORA = LoRAConfig(2, targets=("q", "v"), base_dtype="bfloat16")


def settings(**changes):
    config = test_weigh.settings(fit_unmasked_steps=1, fit_masked_steps=399, batch_size=4)
    config.update(changes)
    return config


@pytest.fixture
def fitting(byte_tokenizer):
    """An answerer with adapters, its learner, parameters and rows."""
    built_in = load_tokenizer(test_alignment.BUILT_IN)
    answerer = test_alignment.llama_of(built_in, LORA)
    student, data = test_alignment.t5_of(byte_tokenizer), test_alignment.records(byte_tokenizer)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    embeddings = jnp.asarray(student.embeddings(student.load(mesh)))
    of = weigh.make_learner(answerer, embeddings, settings(), mesh)
    return of, answerer.load(mesh), answerer_model.read_records(data, student, answerer).batch


def fit(fitting, config, recorder, gap=None):
    of, params, rows = fitting
    with sharding.use(of.mesh):
        return learn.fit_answerer(of, params, rows, config, recorder=recorder, seed=0, gap=gap)


class Memory:
    """Checkpoints in memory, in place of those on disk."""

    def __init__(self):
        self.saved = {}

    def latest_step(self):
        return max(self.saved, default=None)

    def save(self, step, state, *, extra):
        self.saved[step] = jax.device_get(state), extra

    def restore_like(self, state):
        step = max(self.saved)
        found, extra = self.saved[step]
        assert jax.tree.structure(found) == jax.tree.structure(state)
        return types.SimpleNamespace(step=step, state=found, extra=extra)


def test_only_adapters_are_fit_and_saved(fitting):
    memory: Any = Memory()
    fitted = fit(fitting, settings(fit_masked_steps=2), learn.Recorder(lambda *_: None, memory))
    before, after = layout.flatten(fitting[1]), layout.flatten(fitted)
    assert before.keys() == after.keys()
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    adapters = set(filter(layout.is_adapter, before))
    assert changed and changed <= adapters
    assert layout.flatten(memory.saved[3][0]["params"]).keys() == adapters


def test_joint_training_moves_adapters_alone(fitting):
    of, params, rows = fitting
    config = settings(joint_learning_rate=1e-2, steps=2, eval_every=0)
    memory: Any = Memory()
    with sharding.use(of.mesh):
        _, joint = learn.learn_masks(
            of,
            params,
            rows,
            config,
            joint_examples=rows,
            judge=lambda *_: 0.0,
            recorder=learn.Recorder(lambda *_: None, memory),
            seed=0,
        )
    before, after = layout.flatten(params), layout.flatten(joint)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    adapters = set(filter(layout.is_adapter, before))
    assert changed and changed <= adapters
    assert layout.flatten(memory.saved[2][0]["answerer"]).keys() == adapters


def test_a_gap_ends_the_fit_for_good(fitting, monkeypatch):
    monkeypatch.setattr(learn, "_SAVE_EVERY", 2)
    gaps, lines = [0.1, 0.7, 9.0], []
    memory: Any = Memory()
    recorder = learn.Recorder(lambda *line: lines.append(line), memory)
    config = settings(fit_until_gap=0.5)
    fitted = fit(fitting, config, recorder, gap=lambda params: gaps.pop(0))
    # Steps 2 and 4 of 400 are measured; the first of all is on unmasked rationales.
    assert gaps == [9.0]
    assert lines[-1][1] == 4 and lines[-1][2]["gap"] == pytest.approx(0.7)
    again = fit(fitting, config, recorder, gap=lambda params: gaps.pop(0))
    assert gaps == [9.0]
    for path, leaf in layout.flatten(again).items():
        np.testing.assert_array_equal(leaf, layout.flatten(fitted)[path])


def test_the_papers_preset_replaces_what_we_changed():
    config = defaults.get_config().weighting
    assert paper.mask_learning(config) is config
    with config.unlocked():
        config.update({"preset": "paper", "alpha": 0.7, "fit_learning_rate": 3e-4})
    literal = paper.mask_learning(config)
    assert (literal.estimator, literal.prefixes, literal.fit) == ("straight_through", "all", "same")
    assert literal.fit_unmasked_steps == literal.fit_masked_steps == 0
    assert literal.joint_learning_rate == 3e-4
    assert literal.alpha == 0.7 and config.estimator == "score_function"
    config.joint_learning_rate = 1e-5
    assert paper.mask_learning(config).joint_learning_rate == 1e-5
