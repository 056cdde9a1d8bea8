"""The difficulty of each rationale step for the student before distillation (Eq. 8).

Letters: N examples, M rationale tokens in total.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from kpod_jax.config.defaults import Config
from kpod_jax.data import ground_truth
from kpod_jax.data.batches import BatchSource, Layout
from kpod_jax.data.prepare import Data
from kpod_jax.data.records import Ragged, as_ragged, offsets_of
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.models.student import Student
from kpod_jax.parallel import sharding
from kpod_jax.training import forward
from kpod_jax.utils import files
from kpod_jax.utils.progress import Progress


@dataclasses.dataclass(frozen=True)
class StepDifficulty(Ragged):
    """d_k of every training rationale step, in nats: N slices of n_i float32 values.

    Attributes:
      correlation: Spearman's ρ with the true hardness of the steps; None if that is unknown.
    """

    correlation: float | None = None

    OUTPUTS: ClassVar = ("step_difficulty.npz",)

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
    """
    train, mesh = data.train, mesh or sharding.make_mesh()
    layout = Layout(
        bucket_rows or config.batch_size,
        student.seed,
        student.tokenizer.pad_token_id,
        student.decoder_start(student.prompt),
    )
    with Progress(len(train), label, unit="examples") as progress:
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
    hardness = ground_truth.hardness(train.records)
    rho = None if hardness is None else ground_truth.rank_correlation(hardness, difficulty.values)
    return StepDifficulty(difficulty.values, difficulty.offsets, rho)


def rationale_losses(
    module: nn.Module,
    params: Any,
    source: BatchSource,
    tokenized: TokenizedSet,
    mesh: Mesh,
    *,
    batch_size: int,
    progress: Callable[[int], None] = lambda examples: None,
) -> Ragged:
    """Computes -log P(r_j | r_<j, x; θs) of every rationale token in one teacher-forced pass.

    Args:
      module: the student.
      params: θs.
      source: batches of the examples in `tokenized`.
      tokenized: the examples.
      mesh: the mesh of the parameters.
      batch_size: rows per batch.
      progress: called after each batch with the number of examples in it.

    Returns:
      N slices of float32, in nats, one value per rationale token.
    """
    result: list[np.ndarray] = [np.zeros(0, np.float32)] * len(tokenized)
    batches = forward.target_losses_of_all(module, params, source, mesh, batch_size=batch_size)
    for index, values, _ in batches:
        for row, i in enumerate(index):
            if i >= 0:
                result[i] = values[row, : tokenized.rationale_lengths[i]]
        progress(int((index >= 0).sum()))
    return Ragged.from_list(result, np.float32)


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
    steps = [tokenized.steps[i][:n] for i, n in enumerate(tokenized.rationale_lengths.tolist())]
    step_M = np.concatenate([s + offset for s, offset in zip(steps, offsets, strict=False)])
    w_M = np.zeros(len(step_M)) if weights is None else weights.values.astype(np.float64)
    exp_M = np.exp(w_M)  # Cannot overflow: w is in (0, 1).
    total = np.bincount(step_M, exp_M, minlength=offsets[-1])
    value = np.bincount(step_M, exp_M * nll.values, minlength=offsets[-1])
    return Ragged((value / total).astype(np.float32), offsets)
