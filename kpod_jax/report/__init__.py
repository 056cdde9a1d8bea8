"""Reports of runs and sweeps: figures, heat maps and self-contained pages."""

from kpod_jax.report import sweep_text
from kpod_jax.report.page import write, write_sweep
from kpod_jax.report.picture import readme_picture
from kpod_jax.report.viewer import heat_map

__all__ = ["heat_map", "readme_picture", "sweep_text", "write", "write_sweep"]
