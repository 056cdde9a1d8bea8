r"""KPOD on the built-in task with the tiny T5: runs offline on a laptop in minutes.

    python -m kpod_jax.main --config=configs/quickstart.py --workdir=runs/kpod
    python -m kpod_jax.main --config=configs/quickstart.py:scotd --workdir=runs/scotd

The part after the colon is a method of `kpod_jax.config.defaults.METHODS`.
"""

from kpod_jax.config import defaults

# Best of 1e-3, 2e-3 and 4e-3 on the validation split, for each method; for most it is 2e-3.
LEARNING_RATES = {"answer_only": 1e-3, "scott": 1e-3, "specialized_kd": 4e-3}


def get_config(method: str = "kpod"):
    config = defaults.get_config()
    config.data.name = "arithmetic"
    config.data.train_examples = 1500
    config.data.validation_examples = 500
    config.data.test_examples = 1000
    config.student.model = "kpod_jax/assets/tiny_t5"
    config.student.scan_layers = False
    # The answerer is already fit, on problems of the "fresh" split (kpod_jax/pretrain/).
    config.weighting.answerer = "kpod_jax/assets/tiny_answerer"
    config.weighting.fit = "fresh"
    config.weighting.fit_fresh_examples = 64  # Not used by any step.
    config.weighting.fit_unmasked_steps = 0
    config.weighting.fit_masked_steps = 0
    # Prefixes are cheap for a decoder-only answerer; early ones do not affect the answer.
    config.weighting.prefixes = "late"
    config.weighting.alpha = 0.5
    config.weighting.initial_weight = 0.5
    config.weighting.prefix_samples = 8
    config.weighting.learning_rate = 4e-3
    config.weighting.batch_size = 8
    config.weighting.steps = 200
    config.weighting.eval_every = 0
    # A phase is a quarter of an epoch; the first three train on suffixes.
    config.schedule.phase_steps = 47
    config.schedule.ramp_fraction = 0.25
    # Small batches, as in the paper, do not average out the gradients of filler tokens.
    config.distill.batch_size = 8
    config.distill.epochs = 3
    config.distill.learning_rate = LEARNING_RATES.get(method, 2e-3)
    config.distill.decay = "linear"
    config.distill.min_weight = 0.1
    config.eval.max_new_tokens = 160
    return defaults.apply_method(config, method or "kpod")
