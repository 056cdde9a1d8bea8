r"""KPOD on GSM8K with FlanT5-XL (3B), LoRA of rank 128, and the paper's hyperparameters.

    python -m kpod_jax.main --config=configs/flan_t5_xl.py --workdir=runs/flan_t5_xl

Learning rate, batch size and epochs are the paper's. Same devices and mesh as
configs/flan_t5_large.py.
The paper's accuracy on GSM8K (Table 1): 25.19 %; SCoTD 21.85 %, without distillation 13.50 %. Not
measured here yet.
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
