"""Losses (Eq. 1, 15), the train step, its loop, checkpoints, metrics and monitoring."""
