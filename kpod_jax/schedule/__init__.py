"""Which steps are output at which stage (Eq. 9-13), in NumPy: nothing here imports JAX."""
