r"""Table 2: KPOD and its seven ablations.

    python -m kpod_jax.main --mode=sweep --workdir=runs/table2 \
        --sweep=configs/sweeps/table2.py:quickstart,seeds=5

The paper's results are for LLaMA-7B on GSM8K (`table2.py:llama_7b`). See configs/sweeps/common.py
for the options after the colon.
"""

from kpod_jax.config import paper
from kpod_jax.configs.sweeps import common


def get_runs(argument: str = ""):
    return common.runs(common.parse(argument), common.methods(paper.TABLE_2))
