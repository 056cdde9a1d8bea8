"""Benchmarks: `python -m benchmarks.NAME` prints a table. Speeds are ratios within one run."""
