r"""SmolLM2-135M-Instruct on SVAMP: KPOD, its two main ablations and other methods.

    python -m benchmarks.svamp --source=DIR_OF_SVAMP --target=FOLDER
    python -m kpod_jax.main --mode=sweep --workdir=runs/smollm2_svamp \
        --sweep=configs/sweeps/smollm2_svamp.py:smollm2_svamp,student.model=FILE.gguf,data.path=FOLDER,data.rationales=FOLDER/rationales.jsonl

KPOD and SCoTD have five seeds, the others three; `seeds=1` gives each one. `--runs=NAME` executes
one run. See configs/sweeps/common.py for the other options after the colon.
"""

import dataclasses

from kpod_jax.configs.sweeps import common

SEEDS = {
    "kpod": 5,
    "scotd": 5,
    "scotd_equal_tokens": 3,
    "without_significance": 3,
    "without_progression": 3,
    "mcc_kd": 3,
    "mcc_kd_control": 3,
    "answer_only": 3,
    "none": 1,
}


def get_runs(argument: str = ""):
    options = common.parse(argument, base="smollm2_svamp")
    runs = {}
    for method, seeds in SEEDS.items():
        seeds = min(seeds, options.seeds) if "seeds=" in argument else seeds
        runs |= common.runs(dataclasses.replace(options, seeds=seeds), common.methods([method]))
    return runs
