r"""KPOD with SmolLM2-135M-Instruct on a laptop: all stages on 300 rationales in about an hour.

    python -m kpod_jax.main --config=configs/smollm2_135m_cpu.py --workdir=runs/smollm2_135m_cpu \
        --config.student.model=PATH/SmolLM2-135M-Instruct.Q4_1.gguf \
        --config.data.path=DIR_OF_GSM8K --config.data.rationales=rationales.jsonl

A method may follow after a colon: `configs/smollm2_135m_cpu.py:scotd`.
"""

from kpod_jax.config import defaults
from kpod_jax.configs import smollm2_135m


def get_config(method: str = "kpod"):
    config = smollm2_135m.get_config()
    config.student.scan_layers = False
    config.data.train_examples = 300
    config.data.validation_examples = 100
    config.data.test_examples = 100
    # With less than one epoch of fitting, the answerer cannot memorize the answers, so it can be
    # fit on the examples whose weights are learned.
    config.weighting.fit = "same"
    config.weighting.fit_unmasked_steps = 15
    config.weighting.fit_masked_steps = 45
    config.weighting.fit_learning_rate = 2e-4
    # After so little fitting, the answerer only copies answers and cannot continue within a step,
    # so there is a gap only at step ends.
    config.weighting.prefixes = "step_ends"
    config.weighting.mask_samples = 4
    config.weighting.prefix_samples = 4
    config.weighting.batch_size = 4
    config.weighting.learning_rate = 3e-3
    config.weighting.steps = 60
    config.weighting.eval_every = 0
    config.weighting.eval_examples = 32
    # With so few steps, masks may be worse than no masks; continue to demonstrate all stages.
    config.weighting.allow_failed = True
    config.difficulty.batch_size = 8
    # Rows of 512 tokens pack several examples; MCC-KD compares pairs of unpacked rows.
    is_mcc_kd = method.startswith("mcc_kd")
    config.distill.batch_size, config.distill.pack_length = (4, 0) if is_mcc_kd else (3, 512)
    config.distill.epochs = 2
    config.distill.learning_rate = 2e-4
    config.distill.validate_every = 0
    config.distill.checkpoint_every = 40
    config.schedule.phase_steps = 10
    config.eval.max_new_tokens = 192
    return defaults.apply_method(config, method or "kpod")
