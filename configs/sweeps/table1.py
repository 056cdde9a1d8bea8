r"""Table 1: KPOD against every other way to distil, the same student, steps and questions.

    python -m kpod_jax.main --mode=sweep --workdir=runs/table1 \
        --sweep=configs/sweeps/table1.py:flan_t5_large,data=gsm8k+asdiv+svamp,seeds=3,...

All methods of `kpod_jax.config.defaults.METHODS` but the ablations of Table 2. In as many steps
KPOD supervises fewer rationale tokens than SCoTD; "SCoTD, equal tokens" stops when it has had as
many.
MCC-KD compares several rationales of a question and SCOTT learns from counterfactual ones. Except
for the built-in task, only a teacher can write these (docs/teacher.md, docs/baselines.md): add
`data.rationales=FILE` and `baseline.counterfactuals=FILE`. CommonsenseQA, the paper's fourth
column, has no other rationales. What may follow the colon is explained in configs/sweeps/common.py.
"""

from kpod_jax.config import paper
from kpod_jax.config.defaults import METHODS
from kpod_jax.configs.sweeps import common


def get_runs(argument: str = ""):
    names = [name for name in METHODS if name == "kpod" or name not in paper.TABLE_2]
    return common.runs(common.parse(argument), common.methods(names))
