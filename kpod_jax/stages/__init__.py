"""The stages of Algorithm 1: each has a `run_stage`, from files of a work directory to others.

None knows when it is called: that is `kpod_jax/pipeline.py`.
"""
