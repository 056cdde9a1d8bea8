"""Measurements: `python -m benchmarks.NAME` prints a table. Speeds are ratios of one run."""
