r"""KPOD on the built-in task with the tiny T5: minutes on a laptop, offline.

    python -m kpod_jax.main --config=configs/quickstart.py --workdir=runs/kpod
    python -m kpod_jax.main --config=configs/quickstart.py:scotd --workdir=runs/scotd

The argument after the colon is a method of `kpod_jax.configuration.METHODS`.
"""

from kpod_jax import configuration


def get_config(method: str = "kpod"):
    config = configuration.default()
    config.data.name = "arithmetic"
    config.data.train_examples = 1500
    config.data.validation_examples = 200
    config.data.test_examples = 400
    config.student.model = "kpod_jax/assets/tiny_t5"
    config.student.scan_layers = False
    # The answerer was fit beforehand, on problems of the "fresh" split (kpod_jax/pretrain/).
    config.weighting.answerer = "kpod_jax/assets/tiny_answerer"
    config.weighting.fit = "fresh"
    config.weighting.fresh_examples = 64  # No step uses them.
    config.weighting.reading_steps = 0
    config.weighting.masking_steps = 0
    # It cannot go on inside a step, and hard masks collapse: their gradient is too noisy for a
    # batch of this size. Soft masks that start everywhere between 0 and 1 show what a token is
    # worth from nothing to whole; at low temperatures most of them are flat.
    config.weighting.prefixes = "step_ends"
    config.weighting.estimator = "soft"
    config.weighting.initial_weight = 0.5
    config.weighting.temperature_start = 2.0
    config.weighting.temperature_end = 0.5
    config.weighting.steps = 160
    config.weighting.judge_every = 0  # The held-out objective hardly moves: 2.55 against 2.57 nats.
    config.distill.epochs = 8
    config.distill.learning_rate = 2e-3
    config.eval.max_new_tokens = 96
    return configuration.apply_method(config, method or "kpod")
