"""What the Python API has besides the functions of the rooms."""

import pathlib

from kpod_jax import pipeline
from kpod_jax.cli import checks
from kpod_jax.config.defaults import Config
from kpod_jax.utils import files


def run(config: Config, workdir: files.PathLike, mode: str = "all") -> pathlib.Path:
    """All of Algorithm 1, or one of its stages, in a work directory, as the command line runs it.

    Args:
      config: from `load_config`.
      workdir: made if it is missing; what is up to date in it is not made again.
      mode: "all", or "rationales", "weigh", "score", "schedule", "distill", "eval", "report" or
        "export".

    Returns:
      The work directory.

    Raises:
      UserError: the configuration is not sound, or something else that the user can put right.
    """
    checks.check(config)
    return pipeline.run(config, workdir, mode)
