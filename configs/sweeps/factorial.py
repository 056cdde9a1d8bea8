r"""Factorial study of KPOD's parts: token weights × progression × training length.

    python -m benchmarks.controls --run=runs/table1/kpod-seed0
    python -m kpod_jax.main --mode=sweep --workdir=runs/factorial \
        --sweep=configs/sweeps/factorial.py:quickstart,seeds=3,controls=runs/table1/kpod-seed0/controls

Weights are uniform, learned, or the files in `controls`, which benchmarks/controls.py computes from
a finished run: true keypoints, numbers and operators, the student's surprisal, shuffled learned
weights. `lengths=base+long` also trains three times as long. See configs/sweeps/common.py for the
other options after the colon.
"""

import pathlib

from kpod_jax.configs.sweeps import common
from kpod_jax.utils.errors import UserError

CURRICULA = {"": {}, "-full": {"schedule.curriculum": "full"}}
LENGTHS = ("base", "long")


def get_runs(argument: str = ""):
    options = common.parse(argument, more=["controls", "lengths"])
    lengths = options.more.get("lengths", "base").split("+")
    if unknown := [name for name in lengths if name not in LENGTHS]:
        raise UserError(f"lengths={unknown[0]}: expected one or more of {', '.join(LENGTHS)}.")
    weights = {"learned": "learned", "uniform": "uniform"}
    if folder := options.more.get("controls"):
        files = sorted(pathlib.Path(folder).glob("*.npz"))
        if not files:
            raise UserError(
                f"controls={folder}: no .npz files; expected a folder written by "
                "benchmarks.controls."
            )
        weights |= {file.stem: str(file) for file in files}
    base = next(iter(common.runs(options, common.methods(["kpod"])).values()))
    variants = {}
    for length in lengths:
        epochs = base.distill.epochs * (3 if length == "long" else 1)
        for name, value in weights.items():
            for end, keys in CURRICULA.items():
                label = f"{name}{end}" + (f"-{length}" if length != "base" else "")
                keys = {"weighting.weights": value, "distill.epochs": epochs, **keys}
                variants[label] = ("kpod", keys)
    return common.runs(options, variants)
