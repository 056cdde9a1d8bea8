r"""Sensitivity of KPOD's accuracy to its five settings, over the paper's ranges.

    python -m kpod_jax.main --mode=sweep --workdir=runs/sensitivity \
        --sweep=configs/sweeps/sensitivity.py:quickstart,seeds=3

One setting is changed at a time. `settings=alpha+beta` selects some of them; see
configs/sweeps/common.py for the other options after the colon.
"""

from kpod_jax.configs.sweeps import common
from kpod_jax.utils.errors import UserError

# Name in run names: (configuration key, values).
SETTINGS = {
    "alpha": ("weighting.alpha", (0.3, 0.5, 0.7, 0.9)),
    "beta": ("schedule.beta", (10.0, 12.0, 14.0, 16.0)),
    "p": ("schedule.p", (0.5, 1.0, 1.5, 2.0)),
    "clusters": ("schedule.clusters", (3, 5, 7, 9)),
    "initial_fraction": ("schedule.initial_fraction", (0.1, 0.2, 0.3, 0.4)),
}


def get_runs(argument: str = ""):
    options = common.parse(argument, more=["settings"])
    chosen = options.more.get("settings", "+".join(SETTINGS)).split("+")
    if unknown := [name for name in chosen if name not in SETTINGS]:
        raise UserError(f"settings={unknown[0]}: expected one or more of {', '.join(SETTINGS)}.")
    base = next(iter(common.runs(options, common.methods(["kpod"])).values()))
    variants = common.methods(["kpod"])  # First, as the reference for all others.
    for name in chosen:
        key, values = SETTINGS[name]
        block, last = key.split(".")
        variants |= {
            f"{name}{value:g}": ("kpod", {key: value})
            for value in values
            if value != base[block][last]
        }
    return common.runs(options, variants)
