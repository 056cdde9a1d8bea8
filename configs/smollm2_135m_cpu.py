r"""KPOD with SmolLM2-135M-Instruct on a laptop: 300 rationales, every stage, in about an hour.

    python -m kpod_jax.main --config=configs/smollm2_135m_cpu.py --workdir=runs/smollm2_135m_cpu \
        --config.student.model=PATH/SmolLM2-135M-Instruct.Q4_1.gguf \
        --config.data.path=DIR_OF_GSM8K --config.data.rationales=rationales.jsonl

The argument after the colon is a method: `configs/smollm2_135m_cpu.py:scotd`.
"""

from kpod_jax.config import defaults
from kpod_jax.configs import smollm2_135m


def get_config(method: str = "kpod"):
    config = smollm2_135m.get_config()
    config.student.scan_layers = False
    config.data.train_examples = 300
    config.data.validation_examples = 100
    config.data.test_examples = 100
    # Fewer steps than one pass over the data: the answerer cannot learn the answers by heart, so it
    # may be fit on the examples whose weights are learned.
    config.weighting.fit = "same"
    config.weighting.fit_unmasked_steps = 15
    config.weighting.fit_masked_steps = 45
    config.weighting.fit_learning_rate = 2e-4
    # Fit so little it reads answers off, and cannot go on inside a step: elsewhere there is no gap.
    config.weighting.prefixes = "step_ends"
    config.weighting.mask_samples = 4
    config.weighting.prefix_samples = 4
    config.weighting.batch_size = 4
    config.weighting.learning_rate = 3e-3
    config.weighting.steps = 60
    config.weighting.eval_every = 0
    config.weighting.eval_examples = 32
    # So few steps may leave the masks worse than none at all, and the other stages are to be seen.
    config.weighting.allow_failed = True
    config.difficulty.batch_size = 8
    # Rows of 512 tokens, which hold several examples each; MCC-KD compares rows of one, in pairs.
    compares = method.startswith("mcc_kd")
    config.distill.batch_size, config.distill.pack_length = (4, 0) if compares else (3, 512)
    config.distill.epochs = 2
    config.distill.learning_rate = 2e-4
    config.distill.validate_every = 0
    config.distill.checkpoint_every = 40
    config.schedule.phase_steps = 10
    config.eval.max_new_tokens = 192
    return defaults.apply_method(config, method or "kpod")
