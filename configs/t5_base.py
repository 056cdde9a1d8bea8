r"""KPOD on GSM8K with T5-base (220M): the default job for one TPU or GPU host.

    python -m kpod_jax.main --config=configs/t5_base.py --workdir=runs/t5_base

Without a network, pass the data and use random weights with a tokenizer file:

    python -m kpod_jax.main --config=configs/t5_base.py --workdir=runs/t5_base \
        --config.data.path=DIR_OF_train.jsonl_AND_test.jsonl \
        --config.student.init=random --config.student.tokenizer=spiece.model

A method may follow after a colon: `configs/t5_base.py:scotd`. The paper has no T5-base; its FlanT5
settings are used. Not measured yet.
"""

from kpod_jax.config import defaults


def get_config(method: str = "kpod"):
    config = defaults.get_config()
    config.data.name = "gsm8k"
    config.student.model = "google/flan-t5-base"
    config.student.dtype = "bfloat16"
    config.student.max_question_tokens = 256
    config.student.max_target_tokens = 512
    config.weighting.fit = "other_fold"
    # Fit until masks can be learned: a kept token costs alpha = 0.5, so the gap must exceed that.
    config.weighting.fit_until_gap = 1.0
    config.weighting.fit_masked_steps = 3000  # The limit.
    config.weighting.fit_learning_rate = 1e-4
    config.weighting.learning_rate = 1e-3
    # One row per chip on 16 chips: a batch that the devices do not divide is copied to all of them.
    # On a single device, activations take 16 GB in float32.
    config.weighting.batch_size = 16
    config.distill.epochs = 100  # [paper, for FlanT5]
    config.distill.batch_size = 32  # [paper: 4]
    config.distill.learning_rate = 5e-5  # [paper]
    config.distill.dropout = True
    config.distill.checkpoint_every = 500
    config.distill.validate_every = 10
    config.eval.max_new_tokens = 320
    return defaults.apply_method(config, method or "kpod")
