"""What a run was made with: its configuration, versions, revision and devices."""

import importlib.metadata
import pathlib
import subprocess
from typing import Any

import kpod_jax
from kpod_jax.utils import files, renamed

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


def write_config(path: files.PathLike, config: Any) -> None:
    """Writes the resolved configuration, versions, git revision and devices as JSON."""
    import jax  # Rooms of the host use none.

    value = {
        "config": config.to_dict(),
        "kpod_jax": kpod_jax.__version__,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "revision": _revision(),
        "devices": [str(device) for device in jax.devices()],
    }
    files.write_json(path, value)


def read_config(path: files.PathLike) -> dict[str, Any]:
    """What `write_config` wrote, with the keys of earlier versions under their new names."""
    written = files.read_json(path)
    return written | {"config": renamed.current(written["config"])}


def _revision() -> str | None:
    """The git revision of the package's own directory, if it is in a repository."""
    root = pathlib.Path(kpod_jax.__file__).parents[1]
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
