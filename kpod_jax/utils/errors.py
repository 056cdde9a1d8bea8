"""The exception for errors that the user can fix, and what its messages suggest."""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence


class UserError(Exception):
    """An error that the user can fix, such as bad input, a bad setting or a full disk.

    The message says what was wrong, where, what was expected and what to do. `main` prints it
    without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class LockedError(UserError):
    """Another process is using the directory."""


def one_of(value: object, choices: Iterable[str], others: str = "") -> str:
    """Returns "expected one of …", with the nearest choice if the value looks like a misspelt one.

    Args:
      value: what was given.
      choices: what is allowed; "" is shown in quotes.
      others: what else is allowed, such as "package.module:Class".
    """
    choices = tuple(choices)
    listed = ", ".join(choice or "''" for choice in choices)
    return f"expected one of {listed}{others and f', or {others}'}{did_you_mean(value, choices)}"


def did_you_mean(
    value: object, choices: Iterable[str], shown: Mapping[str, str] | None = None
) -> str:
    """Returns " (did you mean 'x'?)" with the nearest choice, "" if none is near.

    Args:
      value: what was given.
      choices: what is allowed.
      shown: what to show for a choice; None: the choice.
    """
    by_spelling = {_spelling(choice): choice for choice in choices if choice}
    near = difflib.get_close_matches(_spelling(str(value)), by_spelling, n=1)
    if not near:
        return ""
    choice = by_spelling[near[0]]
    return f" (did you mean {shown[choice] if shown else choice!r}?)"


def listed(names: Sequence[str], most: int) -> str:
    """Returns at most `most` names, separated by commas, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def why(error: OSError) -> str:
    """Returns the system's reason; NumPy's short writes give none."""
    short_write = re.fullmatch(r"\d+ requested and \d+ written", str(error))
    return os.strerror(errno.ENOSPC) if short_write else error.strerror or str(error)


def one_line(error: BaseException) -> str:
    """Returns an error's text on one line; ml_collections wraps one error in another."""
    first = error.args[0] if isinstance(error, KeyError | AttributeError) and error.args else error
    if isinstance(first, BaseException) and first is not error:
        return one_line(first)
    return " ".join(str(first).split())


def _spelling(text: str) -> str:
    """Returns a text without its case and punctuation: GSM-8K is gsm8k, t5-base.py is t5_base."""
    return text.lower().removesuffix(".py").translate(str.maketrans("-. ", "___"))
