r"""Table 3: training on GSM8K, evaluation on ASDiv and SVAMP as well.

    python -m kpod_jax.main --mode=sweep --workdir=runs/table3 \
        --sweep=configs/sweeps/table3.py:llama_7b,seeds=3,...

Includes all methods of Table 1, which need the files named in configs/sweeps/table1.py. Without a
network, pass the folders of both data sets with `eval.ood_paths=ASDIV+SVAMP`. In the work directory
of `table1.py` with the same base and seeds, nothing is trained again. See configs/sweeps/common.py
for the options after the colon.
"""

from kpod_jax.configs.sweeps import table1


def get_runs(argument: str = ""):
    runs = table1.get_runs(argument or "t5_base")
    for config in runs.values():
        config.eval.ood = tuple(config.eval.ood) or ("asdiv", "svamp")
    return runs
