"""Token weights without mask learning: built-in weightings by name, and custom functions.

A weighting maps a `Setting` to one array per rationale, with a weight from 0 to 1 for each token:

- `surprisal`: rank of -log P of the token under the student.
- `gradient`: rank of |gradient × input| of the answer's loss.
- `excess_loss`: 1 for the tokens with the highest loss under the student minus the loss under a
  reference model, else 0 (Lin et al., "Rho-1: Not All Tokens Are What You Need", NeurIPS 2024).
- `numbers`: 1 for numbers and operators, else `LOW`.

Ranks are within a rationale, divided by its length.

Letters: M rationale tokens of all examples together.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from kpod_jax.config.defaults import Config
from kpod_jax.data.batches import BatchSource, Layout
from kpod_jax.data.records import Ragged, Record, as_ragged
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.models.student import Student
from kpod_jax.parallel import sharding
from kpod_jax.training.forward import rationale_losses
from kpod_jax.utils import plugins
from kpod_jax.utils.errors import UserError
from kpod_jax.weighting import reference
from kpod_jax.weighting.answerer_batch import make_answerer_batch, take
from kpod_jax.weighting.answerer_model import make_answerer

LOW = 0.3  # Weight of tokens that are neither numbers nor operators.
_CALCULATION = re.compile(r"[\d+\-*/=]+")
_PREFIXES = 16  # Number of prefixes per rationale over which `gradient` sums.


@dataclasses.dataclass(frozen=True)
class Setting:
    """The inputs of a weighting.

    Attributes:
      tokenized: the training examples in the student's tokens.
      student: the student before distillation.
      options: `weighting` of the configuration.
      mesh: mesh of the devices.
      workdir: folder for checkpoints, from which an interrupted run resumes.
    """

    tokenized: TokenizedSet
    student: Student
    options: Config
    mesh: Mesh
    workdir: pathlib.Path

    @property
    def records(self) -> Sequence[Record]:
        """The training records."""
        return self.tokenized.records

    @property
    def spans(self) -> Ragged:
        """Characters (start, end) of each token in `record.rationale`, N slices of [*, 2]."""
        return self.tokenized.rationale_char_spans

    def losses(self) -> Ragged:
        """Returns -log P of each rationale token under the student, N slices of float32, nats."""
        return token_losses(self.student, self.tokenized, self.options.batch_size, self.mesh)


Weights: TypeAlias = Ragged | Sequence[npt.ArrayLike]
Weighting: TypeAlias = Callable[[Setting], Weights]


def token_losses(
    student: Student, tokenized: TokenizedSet, batch_size: int, mesh: Mesh, params: Any = None
) -> Ragged:
    """Returns -log P of each rationale token, N slices of float32 in nats.

    Args:
      student: the model.
      tokenized: the examples in its tokens.
      batch_size: rows per batch.
      mesh: mesh of the devices.
      params: the model's parameters, on the mesh; None: those before distillation.
    """
    params = student.load(mesh) if params is None else params
    start_id = student.decoder_start(student.prompt)
    layout = Layout(batch_size, student.seed, student.tokenizer.pad_token_id, start_id)
    source = BatchSource(tokenized, layout)
    return rationale_losses(student.module, params, source, tokenized, mesh, batch_size=batch_size)


def ranks(values: Ragged) -> Ragged:
    """Returns the rank of each value within its slice, divided by its length: in (0, 1]."""
    from scipy import stats  # Slow to import.

    return Ragged.from_list([stats.rankdata(part) / len(part) for part in values], np.float32)


def surprisal(setting: Setting) -> Ragged:
    """Returns the rank of each token's loss within its rationale."""
    return ranks(setting.losses())


def gradient(setting: Setting) -> Ragged:
    """Returns the rank of each token's |gradient × input| within its rationale."""
    values = gradient_times_input(setting.tokenized, setting.student, setting.mesh)
    return ranks(values)


def gradient_times_input(
    tokenized: TokenizedSet, model: Student, mesh: Mesh, seed: int | None = None
) -> Ragged:
    """Returns the first-order effect of masking each token on the answer's loss, in nats.

    The model answers from the question and a prefix of the rationale. If m interpolates a token's
    input embedding from that of the mask (0) to its own (1), the effect is |dL/dm|, summed over
    random prefixes.

    Args:
      tokenized: N examples in the model's tokens.
      model: the model that answers.
      mesh: mesh of the devices.
      seed: seed of the prefixes; None: the model's.

    Returns:
      N slices of float64.
    """
    problems = make_answerer_batch(tokenized, model.tokenizer.pad_token_id)
    answerer, params = make_answerer(model), model.load(mesh)
    rng = np.random.default_rng(model.seed if seed is None else seed)

    def losses(keep: jax.Array, params: Any, rows: Any, prefix: jax.Array) -> jax.Array:
        return answerer.losses(params, rows, keep, prefix).sum()

    # Replicated, so that every process can read the result.
    by_keep = jax.jit(jax.grad(losses), out_shardings=sharding.replicated(mesh))
    values = []
    with sharding.use(mesh):
        for start in range(0, len(tokenized), 64):
            rows = take(problems, np.arange(start, min(start + 64, len(tokenized))))
            lengths = np.asarray(rows.rationale_mask).sum(axis=1)
            total = np.zeros(rows.rationale.shape)
            placed = sharding.place_global(rows, mesh)
            keep = jnp.ones(rows.rationale.shape, jnp.float32)
            for _ in range(_PREFIXES):
                prefix = np.asarray(rng.integers(1, lengths + 1), np.int32)
                found = by_keep(keep, params, placed, sharding.place_global(prefix, mesh))
                total += np.abs(np.asarray(found))
            values += [total[i, :n] for i, n in enumerate(lengths)]
    return Ragged.from_list(values)


def excess_loss(setting: Setting) -> Ragged:
    """Returns 1 for the `kept_fraction` of all tokens with the highest excess loss, else 0."""
    student, train, options = setting.student, setting.tokenized, setting.options
    size, mesh = options.batch_size, setting.mesh
    if options.reference:
        model = reference.load(options.reference, student)
        theirs = token_losses(model, reference.read(model, train), size, mesh)
    else:
        arrays: list[np.ndarray] = [np.zeros(0, np.float32)] * len(train)
        for half, params in reference.fit_halves(student, train, options, mesh, setting.workdir):
            part, _ = student.tokenize([train.records[i] for i in half])
            for i, losses in zip(
                half, token_losses(student, part, size, mesh, params), strict=True
            ):
                arrays[i] = losses
        theirs = Ragged.from_list(arrays)
    return highest(setting.losses(), theirs.values, options.kept_fraction)


def highest(losses: Ragged, reference_M: np.ndarray, fraction: float) -> Ragged:
    """Returns 1 for the given fraction of tokens with the highest excess loss, else 0."""
    excess_M = losses.values - reference_M
    kept = np.argsort(-excess_M, kind="stable")[: math.ceil(fraction * len(excess_M))]
    weights_M = np.zeros(len(excess_M), np.float32)
    weights_M[kept] = 1
    return Ragged(weights_M, losses.offsets)


def numbers(setting: Setting) -> Ragged:
    """Returns 1 for tokens of digits and operators, else `LOW`."""
    return Ragged.from_list(
        [
            [1.0 if _CALCULATION.fullmatch(text[start:end].strip()) else LOW for start, end in part]
            for text, part in zip(
                (r.rationale for r in setting.records), setting.spans, strict=True
            )
        ],
        np.float32,
    )


WEIGHTINGS: dict[str, Weighting] = {
    "surprisal": surprisal,
    "gradient": gradient,
    "excess_loss": excess_loss,
    "numbers": numbers,
}


def load(name: str) -> Weighting:
    """Returns the weighting of `weighting.weights`: one of WEIGHTINGS or package.module:function.

    Raises:
      UserError: it cannot be imported, or is not a function.
    """
    if name in WEIGHTINGS:
        return WEIGHTINGS[name]
    custom: Weighting = plugins.load(name, "weighting.weights")
    if not callable(custom):
        raise UserError(f"weighting.weights={name!r} is not a function; see docs/extending.md.")
    return custom


def compute(name: str, setting: Setting) -> Ragged:
    """Returns the weights of a weighting by its name, N slices of float32.

    Raises:
      UserError: a custom one fails, or does not return a weight from 0 to 1 for each token.
    """
    weighting = load(name)
    if name in WEIGHTINGS:
        weights = weighting(setting)
    else:
        file = (plugins.source_files(name) or [name])[0]
        with plugins.reporting_errors(f"weighting.weights={name!r}: {file}", file):
            weights = as_ragged(weighting(setting))
    assert isinstance(weights, Ragged)
    return check(weights, setting.tokenized.rationale_lengths, name)


def check(weights: Ragged, lengths_N: np.ndarray, name: str) -> Ragged:
    """Returns weights as float32.

    Raises:
      UserError: they are not of N rationales with these lengths, or one is not in [0, 1].
    """
    if not np.array_equal(weights.lengths, lengths_N) or weights.offsets[0] != 0:
        raise UserError(
            f"weighting.weights={name} has weights of {len(weights)} rationales with "
            f"{len(weights.values)} tokens; expected those of the {len(lengths_N)} training "
            f"records, whose rationales have {int(lengths_N.sum())} tokens under this student."
        )
    if not ((weights.values >= 0) & (weights.values <= 1)).all():  # NaN fails both.
        raise UserError(f"weighting.weights={name}: expected weights between 0 and 1.")
    return Ragged(weights.values.astype(np.float32), weights.offsets)
