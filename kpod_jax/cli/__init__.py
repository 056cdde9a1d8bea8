"""Command-line support: configuration checks, help and reference."""
