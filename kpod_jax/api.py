"""Functions of the Python API that span several packages."""

import pathlib

from kpod_jax import pipeline
from kpod_jax.cli import checks
from kpod_jax.config.defaults import Config
from kpod_jax.utils import files


def run(config: Config, workdir: files.PathLike, mode: str = "all") -> pathlib.Path:
    """Runs Algorithm 1, or one of its stages, in a work directory, as the command line does.

    Args:
      config: from `load_config`.
      workdir: work directory, created if missing; results that are up to date are not recomputed.
      mode: "all", or "rationales", "weigh", "score", "schedule", "distill", "eval", "report" or
        "export".

    Returns:
      The work directory.

    Raises:
      UserError: the configuration is invalid, or another error the user can fix.
    """
    checks.check(config)
    return pipeline.run(config, workdir, mode)
