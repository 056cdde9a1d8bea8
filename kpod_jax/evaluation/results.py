"""Reads the results.json of a run, which `evaluate.Results` writes."""

from typing import Any

from kpod_jax.utils import files

_NUMBER = float | int
_KINDS = {
    "method": str,
    "split": str,
    "accuracy": _NUMBER,
    "correct": _NUMBER,
    "total": int,
    "interval": list,
}


def read(workdir: files.PathLike) -> dict[str, Any]:
    """Reads the results of a work directory.

    Raises:
      UserError: they are missing or damaged.
    """
    return files.read_output(files.as_path(workdir) / "results.json", "eval", _KINDS)
