"""Errors, files, progress and plugins: what every room uses."""
