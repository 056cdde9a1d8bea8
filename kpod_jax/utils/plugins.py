"""Loads custom classes and functions that a configuration names as `package.module:Name`."""

import importlib
import importlib.util
import pathlib
import re
import types
from typing import Any, TypeVar

from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

_Class = TypeVar("_Class")


def is_path(name: str) -> bool:
    """Returns whether a name has the form package.module:Class."""
    return re.fullmatch(r"\w+(\.\w+)*:\w+", name) is not None


def load(name: str, key: str) -> Any:
    """Imports the object that a configuration key names.

    Args:
      name: package.module:Class.
      key: configuration key, for error messages.

    Raises:
      UserError: it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{key}={name!r} cannot be imported: {error}. Expected package.module:Class, where the "
            "package is installed or in the working directory."
        ) from error


def load_file(path: files.PathLike, flag: str, function: str) -> types.ModuleType:
    """Imports a Python file by its path.

    Args:
      path: the file; the package's own are also found from other directories.
      flag: the flag that names it, for error messages.
      function: a function that the file must define.

    Raises:
      UserError: there is no such file, or it lacks the function.
    """
    file = pathlib.Path(files.config_file(str(path)))
    specification = importlib.util.spec_from_file_location("kpod_file", file)
    if specification is None or specification.loader is None or not file.is_file():
        raise UserError(f"{flag}={path}: no such Python file.")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    if not hasattr(module, function):
        raise UserError(f"{flag}={path} does not define {function}.")
    return module


def load_subclass(name: str, key: str, base: type[_Class]) -> type[_Class]:
    """Imports the concrete subclass of `base` that a configuration key names.

    Args:
      name: package.module:Class.
      key: configuration key, for error messages.
      base: required base class.

    Raises:
      UserError: it cannot be imported, is not a subclass of `base`, or is abstract.
    """
    cls = load(name, key)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(
            f"{key}={name!r} is not a subclass of {base.__module__}.{base.__qualname__}; see "
            "docs/extending.md."
        )
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise UserError(
            f"{key}={name!r} does not implement {', '.join(missing)}; see docs/extending.md."
        )
    return cls


def source_files(name: str) -> list[str]:
    """Returns the source file of a custom name as a list, empty if there is none.

    A change to the file makes the outputs of custom code stale.
    """
    module, _, attribute = name.partition(":")
    try:
        spec = importlib.util.find_spec(module) if attribute else None
    except ImportError:
        return []  # `load` reports it.
    return [spec.origin] if spec is not None and spec.origin is not None else []
