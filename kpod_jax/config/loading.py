"""Configurations from files: of Python, as `--config` takes them, or of a run."""

import importlib.util
import pathlib
from typing import Any

from kpod_jax.config import defaults
from kpod_jax.config.defaults import Config
from kpod_jax.utils import environment, files, renamed
from kpod_jax.utils.errors import UserError


def load_config(source: files.PathLike = "", **changes: Any) -> Config:
    """The whole configuration, locked.

    Args:
      source: a Python file with `get_config(method)`, perhaps with ":method" behind it, such as
        "configs/quickstart.py:scotd"; a run's work directory or config.json; "" for the defaults.
      **changes: keys with `__` for dots, such as `distill__epochs=3`, and their values.

    Raises:
      UserError: there is no such file, method or key.
    """
    config = _read(str(source))
    flat = renamed.current({key.replace("__", "."): value for key, value in changes.items()})
    known = defaults.flatten(config)
    if unknown := flat.keys() - known.keys():
        raise UserError(f"There is no configuration key {min(unknown)!r}; see --help.")
    config.update_from_flattened_dict(flat)
    return config


def _read(source: str) -> Config:
    if not source:
        return defaults.get_config()
    path, _, argument = source.partition(":") if ".py:" in source else (source, "", "")
    if path.endswith(".py"):
        file = pathlib.Path(files.config_file(path))
        specification = importlib.util.spec_from_file_location("kpod_config", file)
        if specification is None or specification.loader is None or not file.is_file():
            raise UserError(f"There is no configuration file {path}.")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module.get_config(argument) if argument else module.get_config()
    place = pathlib.Path(path)
    place = place / "config.json" if place.is_dir() else files.as_path(path)
    config = defaults.get_config()
    config.update(environment.read_config(place)["config"])
    return config
