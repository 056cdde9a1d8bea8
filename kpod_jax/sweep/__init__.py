"""Sweeps: runs several configurations and compares them, as for a table of a paper."""

from kpod_jax.sweep.runner import main, make, run

__all__ = ["main", "make", "run"]
