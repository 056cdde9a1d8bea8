"""Configurations, one file per job: `python -m kpod_jax.main --config=configs/NAME.py`."""
