"""The reports of a run and of a sweep: figures, heat maps, and one self-contained page each."""

from kpod_jax.report import sweep_text
from kpod_jax.report.page import write, write_sweep
from kpod_jax.report.picture import readme_picture
from kpod_jax.report.viewer import heat_map

__all__ = ["heat_map", "readme_picture", "sweep_text", "write", "write_sweep"]
