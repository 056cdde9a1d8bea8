r"""Table 3: trained on GSM8K, tested on ASDiv and SVAMP as well.

    python -m kpod_jax.main --mode=sweep --workdir=runs/table3 \
        --sweep=configs/sweeps/table3.py:llama_7b,seeds=3,...

All methods of Table 1, which need the files that configs/sweeps/table1.py names. Without a network,
the folders of the two are given with `eval.ood_paths=ASDIV+SVAMP`; in the work directory of
`table1.py` with the same base and seeds, nothing is trained again. What may follow the colon is
explained in configs/sweeps/common.py.
"""

from kpod_jax.configs.sweeps import table1


def get_runs(argument: str = ""):
    runs = table1.get_runs(argument or "t5_base")
    for config in runs.values():
        config.eval.ood = tuple(config.eval.ood) or ("asdiv", "svamp")
    return runs
