"""Utilities shared by all packages: errors, files, stages, progress and plugins."""
