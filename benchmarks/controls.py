r"""Control token weights to compare learned ones with, built from a finished run of KPOD.

    python -m benchmarks.controls --run=runs/kpod
    python -m kpod_jax.main --config=configs/quickstart.py --workdir=runs/shuffled \
        --config.weighting.weights=runs/kpod/controls/shuffled.npz

The first command writes to controls/ in the run: the learned weights, shuffled within each
rationale; 1 for numbers and operators, 0.3 for other tokens; the same for the true keypoints, if
known; and the student's surprisal, -log P of each token before distillation, as its rank within the
rationale.
"""

import pathlib
import re

import numpy as np
from absl import app, flags
from scipy import stats

from benchmarks import tables
from kpod_jax.baselines import TrainingSet
from kpod_jax.config.loading import load_config
from kpod_jax.data.ground_truth import keypoint_tokens
from kpod_jax.data.prepare import Data
from kpod_jax.distillation import batch_source
from kpod_jax.models.student import load_student
from kpod_jax.parallel import sharding
from kpod_jax.schedule import difficulty
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.weighting.weigh import TokenWeights

_LOW = 0.3  # Weight of tokens that are not numbers, operators or keypoints.
_CALCULATION = re.compile(r"[\d+\-*/=]+")


def controls(root: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns control weights, by name, of a run's training rationale tokens, concatenated."""
    config = load_config(root)
    learned, train = TokenWeights.load(root), Data.load(root).train
    rng = np.random.default_rng(0)
    spans = train.rationale_char_spans
    texts = [
        record.rationale[start:end].strip()
        for i, record in enumerate(train.records)
        for start, end in spans[i]
    ]
    weights = {
        "shuffled": np.concatenate([rng.permutation(learned[i]) for i in range(len(learned))]),
        "numbers": np.array([1.0 if _CALCULATION.fullmatch(t) else _LOW for t in texts]),
    }
    truth = keypoint_tokens(train.records, spans)
    if truth is not None:
        weights["keypoints"] = np.where(truth, 1.0, _LOW)
    student, mesh = load_student(config.student, config.seed), sharding.make_mesh(**config.mesh)
    nll = difficulty.rationale_losses(
        student.module,
        student.load(mesh),
        batch_source(config.distill, student, TrainingSet(train)),
        train,
        mesh,
        batch_size=config.difficulty.batch_size,
    )
    ranks = [stats.rankdata(nll[i]) / len(nll[i]) for i in range(len(nll))]
    return weights | {"surprisal": np.concatenate(ranks)}


def main(argv: list[str]) -> None:
    """Writes the files and prints their paths."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument: {argv[1]}")
    try:
        root = files.as_path(str(tables.RUN.value))
        offsets = Data.load(root).train.rationale_char_spans.offsets
        for name, values in controls(root).items():
            path = root / f"controls/{name}.npz"
            files.write_npz(path, values=values.astype(np.float32), offsets=offsets)
            print(path)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    flags.mark_flag_as_required("run")
    app.run(main)
