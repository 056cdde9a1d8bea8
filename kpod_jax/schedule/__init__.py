"""Which steps are output at which phase (Eq. 9-13), in NumPy: nothing here imports JAX."""
