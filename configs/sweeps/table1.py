r"""Table 1: KPOD against all other distillation methods: same student, steps and questions.

    python -m kpod_jax.main --mode=sweep --workdir=runs/table1 \
        --sweep=configs/sweeps/table1.py:flan_t5_large,data=gsm8k+asdiv+svamp,seeds=3,...

Includes all methods of `kpod_jax.config.defaults.METHODS` except the ablations of Table 2. In the
same number of steps KPOD supervises fewer rationale tokens than SCoTD; "SCoTD, equal tokens" stops
at KPOD's number of tokens.
MCC-KD compares several rationales per question and SCOTT learns from counterfactual ones. Except
for the built-in task, these must come from a teacher (docs/teacher.md, docs/baselines.md): add
`data.rationales=FILE` and `baseline.counterfactuals=FILE`. CommonsenseQA, the paper's fourth
column, has no rationales but a teacher's. See configs/sweeps/common.py for the options after the
colon.
"""

from kpod_jax.config import paper
from kpod_jax.config.defaults import METHODS
from kpod_jax.configs.sweeps import common


def get_runs(argument: str = ""):
    names = [name for name in METHODS if name == "kpod" or name not in paper.TABLE_2]
    return common.runs(common.parse(argument), common.methods(names))
