"""What is one's own, named in a configuration by `package.module:Class`, or a function so."""

import importlib
import importlib.util
import re
from typing import Any, TypeVar

from kpod_jax.utils.errors import UserError

_Class = TypeVar("_Class")


def is_path(name: str) -> bool:
    """Whether a name has the form package.module:Class."""
    return re.fullmatch(r"\w+(\.\w+)*:\w+", name) is not None


def load(name: str, key: str) -> Any:
    """Imports what a configuration key names.

    Args:
      name: package.module:Class.
      key: of the configuration, for messages.

    Raises:
      UserError: it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{key}={name!r} cannot be imported: {error}. Expected package.module:Class, with the "
            "package in the working directory or installed."
        ) from error


def load_subclass(name: str, key: str, base: type[_Class]) -> type[_Class]:
    """As `load`, of a class.

    Raises:
      UserError: it cannot be imported, or is no subclass of `base` that is whole.
    """
    found = load(name, key)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(
            f"{key}={name!r} is no subclass of {base.__module__}.{base.__qualname__}; see "
            "docs/extending.md."
        )
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise UserError(f"{key}={name!r} has no {', '.join(missing)}; see docs/extending.md.")
    return found


def source_files(name: str) -> list[str]:
    """The file that a name is from, whose change makes what it made stale; else nothing."""
    module, _, attribute = name.partition(":")
    try:
        spec = importlib.util.find_spec(module) if attribute else None
    except ImportError:
        return []  # `load` says so.
    return [spec.origin] if spec is not None and spec.origin is not None else []
