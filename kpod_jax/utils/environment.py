"""Records a run's configuration, package versions, git revision, devices and command."""

import datetime
import importlib.metadata
import pathlib
import shlex
import subprocess
import sys
from typing import Any

from kpod_jax.utils import config_dict, files, redaction
from kpod_jax.version import __version__

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


def write_config(path: files.PathLike, config: Any) -> None:
    """Writes the configuration (without secrets), versions, devices, date and command as JSON."""
    import jax  # Imported here because host-only code does not use JAX.

    value = {
        "config": config.to_dict(),
        "kpod_jax": __version__,
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "revision": _revision(),
        "devices": [str(device) for device in jax.devices()],
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "date": datetime.date.today().isoformat(),
        "command": _command(),
    }
    files.write_json(path, redaction.redact(value))


def read_config(path: files.PathLike) -> dict[str, Any]:
    """Reads a file written by `write_config`, converting renamed keys of earlier versions."""
    written = files.read_output(path, "all", {"config": dict})
    return written | {"config": config_dict.current(written["config"])}


def _command() -> str | None:
    """Returns the command of this process, or None if another program uses the package."""
    if pathlib.Path(sys.argv[0]).name not in ("main.py", "kpod-jax"):
        return None
    return shlex.join(["python", "-m", "kpod_jax.main", *sys.argv[1:]])


def _revision() -> str | None:
    """Returns the git revision of the package's source, or None outside a repository."""
    root = pathlib.Path(__file__).parents[2]
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
