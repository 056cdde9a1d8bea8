"""Sweeps, one file per table: `python -m kpod_jax.main --mode=sweep --sweep=FILE`."""
