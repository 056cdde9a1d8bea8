"""The stages of Algorithm 1: each is a `run` that reads and writes files of the work directory.

None knows when it is called: that is `kpod_jax/pipeline.py`.
"""
