"""Loads custom classes and functions that a configuration names as `package.module:Name`."""

import contextlib
import importlib
import importlib.util
import pathlib
import re
import traceback
import types
from collections.abc import Iterator
from typing import Any, TypeVar

from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError, did_you_mean, one_line

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
    except Exception as error:  # Whatever the module itself raises.
        file = (source_files(name) or [name])[0]
        raise UserError(
            f"{key}={name!r} cannot be imported: {file}{_where_and_what(error, file)}"
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
    folder = "configs/sweeps" if function == "get_runs" else "configs"
    specification = importlib.util.spec_from_file_location("kpod_file", file)
    if specification is None or specification.loader is None or not file.is_file():
        raise UserError(f"{flag}={path}: no such Python file{_near_file(str(path), folder)}.")
    module = importlib.util.module_from_spec(specification)
    with reporting_errors(f"{flag}={path}", file):
        specification.loader.exec_module(module)
    if not hasattr(module, function):
        raise UserError(f"{flag}={path} does not define {function}.")
    return module


@contextlib.contextmanager
def reporting_errors(name: str, path: files.PathLike) -> Iterator[None]:
    """Turns errors of a user's Python file into one line with the file's line.

    Args:
      name: what names the file, for the message.
      path: the file.

    Raises:
      UserError: the block raised any exception.
    """
    file = files.config_file(str(path))
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{name}{_where_and_what(error, file)}") from error


def _where_and_what(error: BaseException, file: str) -> str:
    """Returns ", line N: ERROR" with the last line of a file that an error passed through."""
    path, text = pathlib.Path(file).resolve(), one_line(error)
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if pathlib.Path(frame.filename).resolve() == path
    ]
    if isinstance(error, SyntaxError) and pathlib.Path(error.filename or "").resolve() == path:
        lines, text = [error.lineno], error.msg
    return f"{f', line {lines[-1]}' if lines else ''}: {type(error).__name__}: {text}"


def _near_file(path: str, folder: str) -> str:
    """Suggests a Python file with a similar name, or lists those of a folder of the package."""
    asked = pathlib.PurePath(path)
    found = {}
    for parent in (folder, str(asked.parent)):
        for directory in (pathlib.Path(__file__).parents[1] / parent, pathlib.Path(parent)):
            names = {file.name for file in directory.glob("*.py")} - {"__init__.py", "common.py"}
            found |= {name: str(pathlib.PurePath(parent) / name) for name in sorted(names)}
    packaged = sorted(place for place in found.values() if place.startswith(folder))
    return did_you_mean(asked.name, found, found) or f"; there are {', '.join(packaged)}"


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
