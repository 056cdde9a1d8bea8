"""The difficulty of each rationale step for the student before distillation (Eq. 8).

Letters: N examples, M rationale tokens in total.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from kpod_jax.config.defaults import Config
from kpod_jax.data import ground_truth
from kpod_jax.data.batches import BatchSource, Layout
from kpod_jax.data.prepare import Data
from kpod_jax.data.record_store import CHUNK
from kpod_jax.data.records import Ragged, as_ragged, offsets_of
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.models.student import Student
from kpod_jax.parallel import sharding
from kpod_jax.training.forward import rationale_losses
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError, listed
from kpod_jax.utils.progress import Progress


@dataclasses.dataclass(frozen=True)
class StepDifficulty(Ragged):
    """d_k of every training rationale step, in nats: N slices of n_i float32 values.

    Attributes:
      correlation: Spearman's ρ with the true hardness of the steps; None if that is unknown.
    """

    correlation: float | None = None

    OUTPUTS: ClassVar[tuple[str, ...]] = ("step_difficulty.npz",)

    def save(self, root: pathlib.Path) -> None:
        """Writes `OUTPUTS` to a work directory."""
        files.write_npz(root / "step_difficulty.npz", values=self.values, offsets=self.offsets)

    @classmethod
    def load(cls, root: pathlib.Path) -> "StepDifficulty":
        """Reads what `save` wrote."""
        path = root / "step_difficulty.npz"
        arrays = files.read_npz(path, "score", ("values", "offsets"))
        return cls(arrays["values"], arrays["offsets"])

    def __str__(self) -> str:
        """Returns a one-line summary."""
        text = f"{len(self.values)} step difficulties, mean {self.values.mean():.2f} nats"
        if self.correlation is not None:
            text += f", rank correlation with the true hardness {self.correlation:.2f}"
        return text


def score_steps(
    config: Config,
    student: Student,
    data: Data,
    weights: Ragged | Sequence[npt.ArrayLike] | None = None,
    mesh: Mesh | None = None,
    *,
    params: Any = None,
    bucket_rows: int = 0,
    label: str = "Scoring",
) -> StepDifficulty:
    """Computes the difficulty of each training rationale step for a student (Eq. 8).

    Args:
      config: the `difficulty` section of the configuration.
      student: model and tokenizer.
      data: provides the training rationales.
      weights: w_j of every rationale token, one array per rationale; None for equal weights.
      mesh: device mesh; None for all devices.
      params: θs, on the mesh; None for the parameters before distillation.
      bucket_rows: batch size for which the batch shapes are chosen, see `length_buckets`; 0 for
        that of `config`.
      label: label of the progress bar.

    Raises:
      UserError: the difficulty of a record is not finite.
    """
    train, mesh = data.train, mesh or sharding.make_mesh()
    layout = Layout(
        bucket_rows or config.batch_size,
        student.seed,
        student.tokenizer.pad_token_id,
        student.decoder_start(student.prompt),
    )
    with Progress(len(train), label, unit="examples", compiles=True) as progress:
        nll = rationale_losses(
            student.module,
            student.load(mesh) if params is None else params,
            BatchSource(train, layout),
            train,
            mesh,
            batch_size=config.batch_size,
            progress=progress.update,
        )
    token_weights = None if config.weights == "uniform" else as_ragged(weights)
    difficulty = step_difficulty(nll, token_weights, train)
    require_finite(difficulty, train)
    hardness = ground_truth.hardness(train.records)
    rho = None if hardness is None else ground_truth.rank_correlation(hardness, difficulty.values)
    return StepDifficulty(difficulty.values, difficulty.offsets, rho)


def require_finite(difficulty: Ragged, tokenized: TokenizedSet) -> None:
    """Raises a `UserError`, which names the records, if a difficulty is not finite."""
    if rows := difficulty.nonfinite():
        ids = [tokenized.records[i].id for i in rows]
        raise UserError(
            f"The difficulty of {len(ids)} of {len(tokenized)} records is not finite: "
            f"{listed(ids, 8)}. Check the weights of student.model and the token weights, or set "
            "student.dtype=float32."
        )


def step_difficulty(nll: Ragged, weights: Ragged | None, tokenized: TokenizedSet) -> Ragged:
    """Computes d_k = Σ_j ŵ_j nll_j over the tokens of step k, ŵ = softmax of w in it (Eq. 8).

    Args:
      nll: negative log probability of every rationale token, in nats, N slices.
      weights: w_j of the same tokens; None for equal weights.
      tokenized: the examples.

    Returns:
      N slices of n_i float32 values, in nats.
    """
    offsets = offsets_of(tokenized.num_steps)
    token_offsets = offsets_of(tokenized.rationale_lengths)
    values = np.zeros(offsets[-1], np.float32)
    for start in range(0, len(tokenized), CHUNK):
        chunk = range(start, min(start + CHUNK, len(tokenized)))
        first, last = offsets[start], offsets[chunk.stop]
        tokens = slice(token_offsets[start], token_offsets[chunk.stop])
        lengths = tokenized.rationale_lengths[start : chunk.stop].tolist()
        steps = [tokenized.steps[i][:n] + offsets[i] for i, n in zip(chunk, lengths, strict=True)]
        step_M = np.concatenate(steps) - first
        w_M = 0.0 if weights is None else weights.values[tokens].astype(np.float64)
        exp_M = np.broadcast_to(np.exp(w_M), len(step_M))  # Cannot overflow: w is in (0, 1).
        total = np.bincount(step_M, exp_M, minlength=last - first)
        sums = np.bincount(step_M, exp_M * nll.values[tokens], minlength=last - first)
        values[first:last] = sums / total
    return Ragged(values, offsets)
