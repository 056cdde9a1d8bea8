"""Text from outside (data, models, endpoints, paths) as it is shown: nothing in it is obeyed."""

import logging
import re

from kpod_jax.utils import redaction

# Control characters (C0, C1), line separators, lone surrogates, and what cannot be seen:
# bidirectional overrides, zero-width characters, tags. Joiners stay: scripts and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)


def printable(text: object, kept: str = "") -> str:
    r"""Returns text with its control and invisible characters escaped, as \x1b, \n or \u202e.

    Args:
      text: the text; other values are converted.
      kept: characters that are not escaped, such as "\n" in text of several lines.
    """
    return _HIDDEN.sub(
        lambda found: found[0] if found[0] in kept else found[0].encode("unicode_escape").decode(),
        str(text),
    )


def not_utf8(text: str) -> bool:
    """Returns whether text, such as a file's name, holds what UTF-8 cannot."""
    return re.search("[\ud800-\udfff]", text) is not None


def message(text: object) -> str:
    """Returns a message as it may be printed: escaped, without secrets.

    Only a list in it, whose lines are indented by two spaces, stays on several lines.
    """
    lines = re.split(r"\n(?=  )", redaction.redact(str(text)))
    return "\n".join(map(printable, lines))


class Formatter(logging.Formatter):
    """Formats log records as "warning: TEXT", the text by `message`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, and a traceback if there is one."""
        text = f"{record.levelname.lower()}: {message(record.getMessage())}"
        return super().format(logging.makeLogRecord(record.__dict__ | {"msg": text, "args": ()}))
