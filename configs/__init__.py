"""Configurations, one file a job: `python -m kpod_jax.main --config=configs/NAME.py`."""
