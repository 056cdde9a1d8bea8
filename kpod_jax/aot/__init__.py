"""Ahead-of-time compilation for absent devices: memory and cost of each step."""
