"""Custom methods, losses, data sets and students, named by import path in a configuration."""
