"""Several runs and their comparison: what a table of a paper is made by."""

from kpod_jax.sweep.runner import make, run

__all__ = ["make", "run"]
