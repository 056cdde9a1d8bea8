"""Loads configurations from Python files, as `--config` does, or from runs."""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from kpod_jax.config import defaults, values
from kpod_jax.config.defaults import Config
from kpod_jax.utils import config_dict, environment, files, plugins
from kpod_jax.utils.errors import UserError, one_line, one_of

_FIRST = {"data": "name", "student": "model"}


def load_config(source: files.PathLike = "", **changes: Any) -> Config:
    """Returns the complete configuration, locked.

    Args:
      source: a Python file with `get_config(method)`, optionally followed by ":method", such as
        "configs/quickstart.py:scotd"; a run's work directory or config.json; "" for the defaults.
      **changes: values by key, with `__` for dots, such as `distill__epochs=3`.

    Raises:
      UserError: the file, method or key does not exist, the file fails, or a value has another
        type than its key's default.
    """
    config = _read(str(source))
    for name, value in changes.items():
        set_key(config, name.replace("__", "."), value)
    return config


def set_key(config: Config, key: str, value: Any) -> None:
    """Sets a key, whose old name works too, in place.

    Raises:
      UserError: there is no such key, or the value has another type than its default.
    """
    config.update_from_flattened_dict({values.current_key(key): values.checked(key, value)})


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
        first = min(unknown)
        raise UserError(f"Unknown {name} setting {first!r}; {one_of(first, settings)}.")
    settings.update({_FIRST[name]: given} if isinstance(given, str) else given)
    settings.update(changes)
    return settings.lock()


def _read(source: str) -> Config:
    if not source:
        return defaults.get_config()
    path, _, argument = source.partition(":") if ".py:" in source else (source, "", "")
    json_path = files.as_path(path)
    if path.endswith(".json") or (json_path / "config.json").is_file():
        return _read_json(json_path if path.endswith(".json") else json_path / "config.json")
    module = plugins.load_file(path, "--config", "get_config")
    with plugins.reporting_errors(f"--config={path}", path):
        config = module.get_config(*[argument] * bool(argument))
    check_tree(config, f"--config={source}: what get_config() returns")
    return config.lock()


def _read_json(path: pathlib.Path) -> Config:
    """Returns the configuration of a run."""
    config = defaults.get_config()
    written = environment.read_config(path)
    try:
        config.update(written["config"])
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} holds no configuration of this version: {one_line(error)}"
        ) from error
    return config


def check_tree(config: Any, name: str) -> None:
    """Raises a `UserError`, which begins with `name`, if a value is no complete configuration."""
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"{name} is of type {type(config).__name__}; expected a configuration, made from "
            "defaults.get_config()."
        )
    keys, expected = config_dict.flatten(config).keys(), values.default_values().keys()
    for unknown in sorted(keys - expected):
        values.current_key(unknown)
    if missing := sorted(expected - keys):
        raise UserError(
            f"{name} has no {missing[0]}; expected a configuration made from defaults.get_config()."
        )
