r"""KPOD on GSM8K with FlanT5-Large (760M) and the paper's learning rate, batch size and epochs.

    python -m kpod_jax.main --config=configs/flan_t5_large.py --workdir=runs/flan_t5_large

Needs one 80 GB GPU, or 2 or 4 TPU chips. On 16 chips, the paper's batch of 4 rows needs
--config.mesh.tensor=4; alternatively use --config.distill.batch_size=16 (docs/scale.md).
The paper's accuracy on GSM8K (Table 1): 22.46 %; SCoTD 19.42 %, without distillation 6.90 %. Not
measured here yet.
"""

from kpod_jax.config import defaults
from kpod_jax.configs import t5_base


def get_config(method: str = "kpod"):
    config = t5_base.get_config()
    config.student.model = "google/flan-t5-large"
    config.student.remat = "dots"
    config.distill.batch_size = 4  # [paper]
    # Parameters, Adam's state and gradients take 12.5 GB: split over devices (docs/scale.md).
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return defaults.apply_method(config, method or "kpod")
