"""Records, data sets, steps, tokens and batches, in NumPy.

Nothing here imports JAX or depends on models, token weights or schedules, which are passed in as
arrays.
"""
