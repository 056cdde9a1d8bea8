"""The default configuration, the methods and the paper's settings."""
