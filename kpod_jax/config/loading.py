"""Loads configurations from Python files, as `--config` does, or from runs."""

import importlib.util
import pathlib
from typing import Any

from kpod_jax.config import defaults
from kpod_jax.config.defaults import Config
from kpod_jax.utils import environment, files, renamed
from kpod_jax.utils.errors import UserError


def load_config(source: files.PathLike = "", **changes: Any) -> Config:
    """Returns the complete configuration, locked.

    Args:
      source: a Python file with `get_config(method)`, optionally followed by ":method", such as
        "configs/quickstart.py:scotd"; a run's work directory or config.json; "" for the defaults.
      **changes: values by key, with `__` for dots, such as `distill__epochs=3`.

    Raises:
      UserError: the file, method or key does not exist.
    """
    config = _read(str(source))
    flat = renamed.current({key.replace("__", "."): value for key, value in changes.items()})
    if unknown := flat.keys() - defaults.flatten(config).keys():
        raise UserError(f"No such configuration key: {min(unknown)!r}. See --help.")
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
            raise UserError(f"No such configuration file: {path}")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module.get_config(argument) if argument else module.get_config()
    json_path = pathlib.Path(path)
    json_path = json_path / "config.json" if json_path.is_dir() else files.as_path(path)
    config = defaults.get_config()
    config.update(environment.read_config(json_path)["config"])
    return config
