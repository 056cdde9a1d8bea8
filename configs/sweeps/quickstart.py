r"""KPOD without token weights, SCoTD and no distillation: the same student, steps and questions.

    python -m kpod_jax.main --mode=sweep --sweep=configs/sweeps/quickstart.py --workdir=runs/qs

Token weights are left out as long as the repository ships no answerer that reads the built-in task:
without one there is nothing to learn them from, and the weighing stage refuses to go on.

`:short` after the file's name makes a form of a minute or two that shows that everything works; it
learns token weights too, though its answerer has hardly been fit and they mean nothing.
"""

from configs import quickstart

SEEDS = (0, 1)


def get_runs(argument: str = ""):
    runs = {}
    first = "kpod" if argument == "short" else "without_significance"
    for method in (first, "scotd", "none"):
        # Without distillation there is nothing random.
        for seed in SEEDS[:1] if argument == "short" or method == "none" else SEEDS:
            config = quickstart.get_config(method)
            config.seed = seed
            if argument == "short":
                config.data.train_examples = 96
                config.data.validation_examples = 32
                config.data.test_examples = 48
                config.weighting.reading_steps = 10
                config.weighting.masking_steps = 10
                config.weighting.steps = 10
                config.weighting.fresh_examples = 200
                config.weighting.min_gap = -100.0
                if config.distill.epochs:
                    config.distill.epochs = 4
            runs[f"{method}-seed{seed}"] = config
    return runs
