"""Chooses the steps that are output in each phase (Eq. 9-13).

Only `difficulty` and `schedule` use JAX; the other modules do not import it.
"""
