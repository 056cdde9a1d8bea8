"""The default configuration, methods by name, and the paper's settings."""
