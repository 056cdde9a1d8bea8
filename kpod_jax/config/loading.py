"""Loads configurations from Python files, as `--config` does, or from runs."""

import pathlib
from collections.abc import Mapping
from typing import Any

from kpod_jax.config import defaults
from kpod_jax.config.defaults import Config
from kpod_jax.utils import config_dict, environment, files, plugins
from kpod_jax.utils.errors import UserError

_FIRST = {"data": "name", "student": "model"}


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
    flat = config_dict.current({key.replace("__", "."): value for key, value in changes.items()})
    if unknown := flat.keys() - config_dict.flatten(config).keys():
        raise UserError(f"No such configuration key: {min(unknown)!r}. See --help.")
    config.update_from_flattened_dict(flat)
    return config


def section(name: str, given: str | Config, changes: Mapping[str, Any]) -> Config:
    """Returns a locked copy of a section of the configuration, with changes.

    Args:
      name: "data" or "student".
      given: such a section; or the value of its first key, `data.name` or `student.model`, with
        the defaults of all others.
      changes: keys and values.

    Raises:
      UserError: there is no such key.
    """
    settings = defaults.get_config()[name]
    if unknown := changes.keys() - settings.keys():
        raise UserError(
            f"Unknown {name} setting {min(unknown)!r}; expected one of {', '.join(settings)}."
        )
    settings.update({_FIRST[name]: given} if isinstance(given, str) else given)
    settings.update(changes)
    return settings.lock()


def _read(source: str) -> Config:
    if not source:
        return defaults.get_config()
    path, _, argument = source.partition(":") if ".py:" in source else (source, "", "")
    if path.endswith(".py"):
        module = plugins.load_file(path, "config", "get_config")
        return module.get_config(argument) if argument else module.get_config()
    json_path = pathlib.Path(path)
    json_path = json_path / "config.json" if json_path.is_dir() else files.as_path(path)
    config = defaults.get_config()
    config.update(environment.read_config(json_path)["config"])
    return config
