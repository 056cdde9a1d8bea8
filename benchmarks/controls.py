r"""Control token weights to compare learned ones with, built from a finished run of KPOD.

    python -m benchmarks.controls --run=runs/kpod
    python -m kpod_jax.main --config=configs/quickstart.py --workdir=runs/shuffled \
        --config.weighting.weights=runs/kpod/controls/shuffled.npz

The first command writes to controls/ in the run: the learned weights, shuffled within each
rationale; and 1 for the true keypoints, if known, 0.3 for other tokens. Other controls have names,
such as --config.weighting.weights=numbers or surprisal.
"""

import pathlib

import numpy as np
from absl import app, flags

from benchmarks import tables
from kpod_jax.data.ground_truth import keypoint_tokens
from kpod_jax.data.prepare import Data
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.weighting.weigh import TokenWeights
from kpod_jax.weighting.weightings import LOW


def controls(root: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns control weights, by name, of a run's training rationale tokens, concatenated."""
    learned, train = TokenWeights.load(root), Data.load(root).train
    rng = np.random.default_rng(0)
    weights = {
        "shuffled": np.concatenate([rng.permutation(learned[i]) for i in range(len(learned))])
    }
    truth = keypoint_tokens(train.records, train.rationale_char_spans)
    if truth is not None:
        weights["keypoints"] = np.where(truth, 1.0, LOW)
    return weights


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
