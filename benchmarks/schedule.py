r"""Cost and quality of the schedule, from 1,000 to 1,000,000 examples, on one core.

    python -m benchmarks.schedule            # prints two tables
    python -m benchmarks.schedule --write    # and updates docs/schedule.md

Examples have 8 steps of gamma-distributed difficulty and 5 clusters; the schedule has 10 phases and
the paper's settings. On small instances the solvers are compared with the best of all subsets.
"""

import resource
import statistics
import time

import numpy as np
import threadpoolctl
from absl import app

from benchmarks import tables
from kpod_jax.data.records import Ragged
from kpod_jax.schedule import solvers, value
from kpod_jax.schedule.kpod import KPOD

_SIZES, _STEPS, _CLUSTERS, _PHASES, _RUNS = (10**3, 10**4, 10**5, 10**6), 8, 5, 10, 3
_INSTANCES, _SMALL = 3000, 12
BETA = 12.0


def random_difficulty(examples: int) -> tuple[Ragged, np.ndarray]:
    """Returns random step difficulties and clusters, in the format of a run."""
    rng = np.random.default_rng(0)
    values = rng.gamma(2.0, 0.5, examples * _STEPS).astype(np.float32)
    clusters = rng.integers(0, _CLUSTERS, examples)
    return Ragged(values, np.arange(examples + 1) * _STEPS), clusters


def whole_schedule(difficulty: Ragged, clusters: np.ndarray, solver: str) -> float:
    """Returns the seconds of CPU time for a schedule of all phases."""
    start = time.process_time()
    curriculum = KPOD(
        difficulty,
        clusters,
        ramp_phases=_PHASES,
        p=0.5,
        initial_fraction=0.3,
        beta=BETA,
        solver=solver,
    )
    curriculum.start_steps(_PHASES)
    return time.process_time() - start


def cost_table() -> list[str]:
    """Returns the table of time, growth and memory by size and solver."""
    rows = [
        "| examples | solver | seconds | for 10 times as many | memory, MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    before: dict[str, float] = {}
    for size in _SIZES:
        difficulty, clusters = random_difficulty(size)
        for solver in solvers.SOLVERS:
            seconds = min(whole_schedule(difficulty, clusters, solver) for _ in range(_RUNS))
            growth = f"× {seconds / before[solver]:.1f}" if solver in before else ""
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
            rows.append(f"| {size:,} | {solver} | {seconds:.3f} | {growth} | {memory:.0f} |")
            before[solver] = seconds
    return rows


def value_table() -> list[str]:
    """Returns the table of F(S) - F(∅) relative to the optimum, on random small instances."""
    rows = [
        "| solver | worst | 1 in 100 below | mean | best found |",
        "| --- | --- | --- | --- | --- |",
    ]
    ratios: dict[str, list[float]] = {name: [] for name in solvers.SOLVERS}
    rng = np.random.default_rng(0)
    for _ in range(_INSTANCES):
        size = int(rng.integers(2, _SMALL + 1))
        # From equal costs to a single dominant one; from no effect of clusters to a strong one.
        cost = rng.gamma(rng.choice([0.2, 1.0, 5.0]), 1.0, size)
        cluster = rng.integers(0, 4, size)
        budget = float(cost.sum() * rng.uniform(0.05, 0.95))
        beta = float(rng.choice([0.0, 0.1, 1.0, BETA]))

        def worth(selected: np.ndarray, cost=cost, cluster=cluster, beta=beta) -> float:
            return value.selection_value(selected, cost, cluster, 0.0, beta)

        best = worth(solvers.exact(cost, cluster, budget, beta))
        for name, solve in solvers.SOLVERS.items():
            ratios[name].append(worth(solve(cost, cluster, budget, beta)) / best if best else 1.0)
    for name, values in ratios.items():
        low = np.quantile(values, 0.01)
        best_found = np.mean(np.array(values) > 1 - 1e-12)
        rows.append(
            f"| {name} | {min(values):.3f} | {low:.3f} | {statistics.fmean(values):.4f} "
            f"| {best_found:.1%} |"
        )
    return rows


def main(argv: list[str]) -> None:
    """Prints the tables."""
    del argv
    with threadpoolctl.threadpool_limits(1):
        results = {"cost": cost_table(), "value": value_table()}
    for name, rows in results.items():
        print("\n".join(rows))
        if tables.WRITE.value:
            tables.put("docs/schedule.md", name, rows)


if __name__ == "__main__":
    app.run(main)
