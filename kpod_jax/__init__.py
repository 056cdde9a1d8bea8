"""KPOD-JAX: keypoint-based progressive chain-of-thought distillation (ICML 2024) in JAX."""

__version__ = "0.2.0"
