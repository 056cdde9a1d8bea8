"""The report of a run: figures, the heat map of token weights, and one self-contained page."""

from kpod_jax.report.page import write
from kpod_jax.report.picture import readme_picture
from kpod_jax.report.viewer import heat_map

__all__ = ["heat_map", "readme_picture", "write"]
