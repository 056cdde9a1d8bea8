"""Losses (Eq. 1, 15), train step, training loop, checkpoints, metrics and monitoring."""
