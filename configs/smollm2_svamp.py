r"""SmolLM2-135M-Instruct on SVAMP with a teacher's rationales, on a CPU: a run takes 40 minutes.

    python -m benchmarks.svamp --source=DIR_OF_SVAMP --target=FOLDER
    python -m kpod_jax.main --config=configs/smollm2_svamp.py --workdir=runs/smollm2_svamp \
        --config.student.model=PATH/SmolLM2-135M-Instruct.Q4_1.gguf \
        --config.data.path=FOLDER --config.data.rationales=FOLDER/rationales.jsonl

A method may follow after a colon: `configs/smollm2_svamp.py:scotd`. All methods and seeds are
`configs/sweeps/smollm2_svamp.py`. Python 3.12 or newer gets a JAX that multiplies bfloat16 several
times as fast on CPUs with matrix units; on others, set `--config.student.dtype=float32`.
"""

from kpod_jax.config import defaults
from kpod_jax.configs import smollm2_135m_cpu


def get_config(method: str = "kpod"):
    config = smollm2_135m_cpu.get_config(method)
    config.data.name = "jsonl"
    for split in ("train", "validation", "test"):
        config.data[f"{split}_examples"] = 0
    config.distill.epochs = 6
    config.distill.validate_every = 2
    config.distill.learning_rate = 5e-5  # The best of the rates tried so far (docs/results.md).
    config.distill.decay = "linear"
    config.distill.checkpoint_every = 100
    config.eval.batch_size = 50
    config.eval.max_new_tokens = 128
    if method.startswith("mcc_kd"):
        config.distill.epochs = 3  # Two rationales per question: as many rationale tokens.
    return defaults.apply_method(config, method or "kpod")
