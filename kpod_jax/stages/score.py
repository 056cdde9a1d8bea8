"""Step difficulties under a student (Eq. 8)."""

from typing import Any

from kpod_jax.data import known
from kpod_jax.data.records import Ragged
from kpod_jax.run import Run
from kpod_jax.schedule import difficulty
from kpod_jax.utils import files
from kpod_jax.utils.progress import Progress


def difficulty_of(run: Run, params: Any, what: str) -> Ragged:
    """d_k of every step of the training rationales under some parameters (Eq. 8)."""
    config, train = run.config, run.train_set
    with Progress(len(train), what, unit="examples") as progress:
        nll = difficulty.rationale_losses(
            run.student.module,
            params,
            run.batch_source(),
            train,
            run.mesh,
            batch_size=config.difficulty.batch_size,
            progress=progress.update,
        )
    weights = None if config.difficulty.weights == "uniform" else run.weights()
    return difficulty.step_difficulty(nll, weights, train)


def run_stage(run: Run) -> str:
    """Scores the training records, with token_weights.npz if asked; writes step_difficulty.npz.

    Returns:
      What was done, in a few words.
    """
    train = run.train_set
    result = difficulty_of(run, run.student.load(run.mesh), "Scoring")
    files.write_npz(
        run.workdir / "step_difficulty.npz", values=result.values, offsets=result.offsets
    )
    message = f"{len(result.values)} step difficulties, mean {result.values.mean():.2f} nats"
    hardness = known.hardness(train.records)
    rho = None if hardness is None else known.rank_correlation(hardness, result.values)
    return message + ("" if rho is None else f", rank correlation with the known ones {rho:.2f}")
