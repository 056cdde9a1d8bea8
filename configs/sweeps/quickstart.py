r"""KPOD, SCoTD and no distillation: the same student, steps and questions.

    python -m kpod_jax.main --mode=sweep --sweep=configs/sweeps/quickstart.py --workdir=runs/qs

`:short` after the file's name makes a form of a minute or two that shows that everything works; its
figures mean nothing.
"""

from configs import quickstart

SEEDS = (0, 1)


def get_runs(argument: str = ""):
    runs = {}
    for method in ("kpod", "scotd", "none"):
        # Without distillation there is nothing random.
        for seed in SEEDS[:1] if argument == "short" or method == "none" else SEEDS:
            config = quickstart.get_config(method)
            config.seed = seed
            if argument == "short":
                config.data.train_examples = 96
                config.data.validation_examples = 32
                config.data.test_examples = 48
                config.weighting.steps = 10
                if config.distill.epochs:
                    config.distill.epochs = 4
            runs[f"{method}-seed{seed}"] = config
    return runs
