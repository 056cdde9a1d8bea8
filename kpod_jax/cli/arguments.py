"""The command line's arguments: flags, and configuration keys as --config.KEY=VALUE."""

import collections
import re
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from kpod_jax.config import values
from kpod_jax.config.defaults import Config
from kpod_jax.config.loading import load_config, set_key
from kpod_jax.utils.errors import UserError, did_you_mean, one_line, one_of
from kpod_jax.utils.printable import not_utf8

_FLAG = re.compile(r"--?(\w+)")
_KEY = re.compile(r"--?(no)?config\.([^=]*)(?:=(.*))?", re.DOTALL)


class ChoiceParser(flags.EnumParser):
    """Parser of a flag with a few values; its error suggests the nearest one."""

    def parse(self, argument: str) -> str:
        """Returns the value.

        Raises:
          ValueError: it is none of the choices.
        """
        if argument not in self.enum_values:
            raise ValueError(one_of(argument, self.enum_values))
        return argument


def check_text(arguments: Sequence[str]) -> None:
    """Raises a `UserError` if an argument is not UTF-8, as the files of a run are."""
    for argument in arguments:
        if not_utf8(argument):
            raise UserError(f"{argument} is not UTF-8 text; rename the file, or convert the text.")


def with_pattern(arguments: Sequence[str]) -> list[str]:
    """Turns the PATTERN of `--mode=keys PATTERN` into a flag."""
    *before, last = arguments or ("",)
    if before and before[-1].lstrip("-") == "mode=keys" and not last.startswith("-"):
        return [*before, f"--keys={last}"]
    return list(arguments)


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Separates the configuration keys from the flags.

    `--config.KEY VALUE` works too, as does `--config.KEY` or `--noconfig.KEY` for a bool. A key of
    several items may be given once for each.

    Returns:
      The other arguments, and the values by key.

    Raises:
      UserError: a key does not exist, has no value or one of a wrong type, or is given twice.
    """
    others, found = [], {}
    remaining = iter(arguments)
    for argument in remaining:
        match = _KEY.fullmatch(argument)
        if argument == "--":
            return [*others, argument, *remaining], found
        if match is None:
            others.append(argument)
            continue
        negated, name, text = match.groups()
        key = values.current_key(name)
        if text is None and isinstance(values.default_values()[key], bool):
            text = "false" if negated else "true"
        elif text is None and (text := next(remaining, None)) is None:
            raise UserError(f"--config.{key} has no value; expected --config.{key}=VALUE.")
        value = values.from_text(key, text)
        if isinstance(value, tuple) and key in found:
            value = found[key] + value
        elif str(found.setdefault(key, value)) != str(value):  # NaN differs from itself.
            raise UserError(
                f"--config.{key} is given twice, as {found[key]!r} and {value!r}; expected one."
            )
        found[key] = value
    return others, found


def parse(flag_values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Parses the flags.

    Raises:
      UserError: a flag does not exist, has a wrong value or is given twice; or there are arguments
        other than flags.
    """
    try:
        _, *rest = flag_values(["main", *arguments])
    except flags.UnrecognizedFlagError as error:
        name = error.flagname.partition("=")[0]
        known = dict.fromkeys(flag_values)
        hint = did_you_mean(name, [*known, *values.default_values()])
        if name.removeprefix("config") in values.default_values():
            hint = f" (did you mean --config.{name}?)"
        raise UserError(f"--{name}: no such flag{hint}. See --help.") from error
    except flags.Error as error:
        raise UserError(f"{one_line(error).removeprefix('flag ')}. See --help.") from error
    if rest:
        raise UserError(
            f"{rest[0]!r} is no flag; expected flags such as --workdir=runs/kpod. See --help."
        )
    given = (match[1] for match in map(_FLAG.match, arguments) if match is not None)
    for name, count in collections.Counter(given).items():
        if count > 1 and name in flag_values:
            raise UserError(f"--{name} is given {count} times; expected once.")


def config(source: str, changes: Mapping[str, Any]) -> Config:
    """Returns the configuration of --config, with changed keys.

    Raises:
      UserError: see `load_config`.
    """
    loaded = load_config(source)
    for key, value in changes.items():
        set_key(loaded, key, value)
    return loaded
