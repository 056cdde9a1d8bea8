r"""How much KPOD's accuracy depends on its five settings, over the ranges that the paper shows.

    python -m kpod_jax.main --mode=sweep --workdir=runs/sensitivity \
        --sweep=configs/sweeps/sensitivity.py:quickstart,seeds=3

One setting is changed at a time. `settings=alpha+beta` takes some of them alone; what else may
follow the colon is explained in configs/sweeps/common.py.
"""

from kpod_jax.configs.sweeps import common
from kpod_jax.utils.errors import UserError

# Name in the runs' names: the key of the configuration, and the values.
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
        raise UserError(f"settings={unknown[0]}: expected some of {', '.join(SETTINGS)}.")
    base = next(iter(common.runs(options, common.methods(["kpod"])).values()))
    variants = common.methods(["kpod"])  # First: all others are held against it.
    for name in chosen:
        key, values = SETTINGS[name]
        room, last = key.split(".")
        variants |= {
            f"{name}{value:g}": ("kpod", {key: value})
            for value in values
            if value != base[room][last]
        }
    return common.runs(options, variants)
