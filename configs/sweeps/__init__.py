"""Sweeps, one file a table: `python -m kpod_jax.main --mode=sweep --sweep=FILE`."""
