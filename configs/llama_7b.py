r"""KPOD on GSM8K with LLaMA-7B, LoRA of rank 64, and the paper's hyperparameters.

    python -m kpod_jax.main --config=configs/llama_7b.py --workdir=runs/llama_7b

Learning rate, batch size, epochs and answerer are the paper's: FlanT5-Large reads the rationales in
its own tokens. The base weights are frozen, in bfloat16. Compiled for one TPU v5p chip, the steps
take 19.9 GB (train), 22.6 (fit), 21.4 (learn), 47.6 (fill) and 69.3 (decode) (docs/scale.md), so by
calculation one 80 GB GPU carries all of them. On 16 TPU chips add --config.mesh.tensor=4.
docs/reproduce.md counts the hours.

The paper's accuracy on GSM8K (Table 1): 46.74 %; SCoTD 38.54 %, without distillation 11.00 %. Not
measured here yet.
"""

from kpod_jax.config import defaults
from kpod_jax.configs import t5_base


def get_config(method: str = "kpod"):
    config = t5_base.get_config()
    config.student.model = "huggyllama/llama-7b"
    config.student.lora.rank = 64  # [paper]
    config.student.lora.alpha = 64.0
    config.student.lora.base_dtype = "bfloat16"
    config.student.dtype = "bfloat16"
    config.student.remat = "full"
    # The paper's. It reads rationales in its own tokens; LLaMA-7B as answerer would not fit.
    config.weighting.answerer = "google/flan-t5-large"  # [paper]
    config.distill.epochs = 20  # [paper, on GSM8K]
    config.distill.batch_size = 4  # [paper]
    config.distill.learning_rate = 1e-5  # [paper]
    config.distill.dropout = False
    # Parameters are split over the devices; 4 rows feed at most 4 devices (docs/scale.md).
    config.mesh.data = 1
    config.mesh.fsdp = -1
    return defaults.apply_method(config, method or "kpod")
