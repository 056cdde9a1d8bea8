r"""KPOD, SCoTD and no distillation: the same student, steps and questions.

    python -m kpod_jax.main --mode=sweep --sweep=configs/sweeps/quickstart.py --workdir=runs/qs

With `:short` after the file name, it takes a minute or two and shows that everything works; the
results mean nothing.
"""

from kpod_jax.configs.sweeps import common


def get_runs(argument: str = ""):
    seeds = 1 if "short" in argument.split(",") else 2
    options = common.parse(f"quickstart,seeds={seeds},{argument}")
    return common.runs(options, common.methods(("kpod", "scotd", "none")))
