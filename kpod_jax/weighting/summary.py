"""Reads the weighting.json of a run, which `weigh.TokenWeights` writes."""

from typing import Any

from kpod_jax.utils import files


def read(workdir: files.PathLike) -> dict[str, Any]:
    """Reads how the token weights of a work directory were learned.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = files.as_path(workdir) / "weighting.json"
    return files.read_output(path, "weigh", {"mean_weight": float | int})
