r"""KPOD on GSM8K with FlanT5-XL (3B) and LoRA of rank 128, with the paper's rate, batch and epochs.

    python -m kpod_jax.main --config=configs/flan_t5_xl.py --workdir=runs/flan_t5_xl

Devices as for configs/flan_t5_large.py, whose mesh it has.
The paper's accuracy on GSM8K (Table 1): 25.19 %; SCoTD 21.85 %, without distillation 13.50 %. Not
yet measured here.
"""

from kpod_jax.config import defaults
from kpod_jax.configs import flan_t5_large


def get_config(method: str = "kpod"):
    config = flan_t5_large.get_config()
    config.student.model = "google/flan-t5-xl"
    config.student.lora.rank = 128  # [paper]
    config.student.lora.alpha = 128.0
    config.weighting.answerer = "google/flan-t5-large"  # [paper]
    return defaults.apply_method(config, method or "kpod")
