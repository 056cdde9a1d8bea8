"""Records, data sets, steps, tokens and batches, in NumPy.

Nothing here imports JAX or knows of models, token weights or schedules: those come as arrays.
"""
