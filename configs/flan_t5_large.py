r"""KPOD on GSM8K with FlanT5-Large (760M), with the paper's rate, batch and epochs.

    python -m kpod_jax.main --config=configs/flan_t5_large.py --workdir=runs/flan_t5_large

One GPU of 80 GB, or 2 or 4 TPU chips; on 16 chips 4 rows need --config.mesh.tensor=4, or
--config.distill.batch_size=16 takes the place of the paper's (docs/scale.md).
The paper's accuracy on GSM8K (Table 1): 22.46 %; SCoTD 19.42 %, without distillation 6.90 %. Not
yet measured here.
"""

from kpod_jax.config import defaults
from kpod_jax.configs import t5_base


def get_config(method: str = "kpod"):
    config = t5_base.get_config()
    config.student.model = "google/flan-t5-large"
    config.student.remat = "dots"
    config.distill.batch_size = 4  # [paper]
    # Parameters, Adam's state and gradients are 12.5 GB: split over devices (docs/scale.md).
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return defaults.apply_method(config, method or "kpod")
