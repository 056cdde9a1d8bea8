"""Removes keys from what is written and printed.

An endpoint knows the key that it is sent, and may repeat it anywhere in its answers, which are
shared with others. So every form that a reader could turn back is replaced: the key itself in any
case, its URL-encoded, base64 and hexadecimal forms, and half of any of these or more.
"""

import base64
import functools
import os
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

# Environment variables that hold keys.
_VARIABLES = (
    "OPENAI_API_KEY",
    "OPENAI_ADMIN_KEY",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
)
_SHOWN = "[key]"
_MIN_LENGTH = 16  # Shorter ones are placeholders, such as EMPTY, and may be words of a text.
_MIN_PART = 12  # A shorter part of a key may be a word or a number.


def redact(value: Any) -> Any:
    """Returns a value with "[key]" in place of the keys in the environment.

    Args:
      value: text, or lists, tuples and mappings of it, of any depth; keys of mappings count.
    """
    keys = tuple(os.environ.get(name, "").strip() for name in _VARIABLES)
    forms = _forms(keys)
    return _redact(value, forms) if forms else value


def _redact(value: Any, forms: tuple["_Form", ...]) -> Any:
    if isinstance(value, str):
        if len(value) < _MIN_PART:
            return value
        return functools.reduce(lambda text, form: form.redact(text), forms, value)
    if isinstance(value, Mapping):
        return {_redact(k, forms): _redact(v, forms) for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [_redact(item, forms) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


class _Form:
    """A form of a key, found by blocks of which every half of it holds one."""

    def __init__(self, form: str) -> None:
        self._form = form.lower()
        self._part = min(len(form), max(_MIN_PART, (len(form) + 1) // 2))
        self._size = (self._part + 1) // 2
        starts = range(0, len(form) - self._size + 1, self._size)
        self._places = {self._form[i : i + self._size]: i for i in starts}
        blocks = "|".join(map(re.escape, self._places))
        self._blocks = re.compile(blocks, re.IGNORECASE | re.ASCII)

    def redact(self, text: str) -> str:
        """Replaces every part that is long enough."""
        result, end, position = [], 0, 0
        while match := self._blocks.search(text, position):
            place = self._places.get(match[0].lower(), 0)
            start = match.start()
            head = text[max(end, start - place) : start]
            before = _common(head[::-1], self._form[:place][::-1])
            after = _common(text[start : start + len(self._form)], self._form[place:])
            position = match.end()
            if before + after >= self._part:
                result += [text[end : start - before], _SHOWN]
                end = position = start + after
        return "".join([*result, text[end:]]) if result else text


def _common(text: str, form: str) -> int:
    """Returns how many first characters of `text` are those of `form`, in any case."""
    pairs = zip(text[: len(form)], form, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a.lower() != b), min(len(text), len(form)))


@functools.lru_cache(maxsize=8)
def _forms(keys: tuple[str, ...]) -> tuple[_Form, ...]:
    forms = []
    for key in keys:
        if len(key) < _MIN_LENGTH:
            continue
        data = key.encode("utf-8", "surrogateescape")
        forms += [key, urllib.parse.quote(data, safe=""), data.hex()]
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            for shift in range(3):  # Where the key begins within a group of three bytes.
                # Characters at both ends also depend on what is beside the key.
                inside = encode(bytes(shift) + data).rstrip(b"=")
                forms.append(inside[(8 * shift + 5) // 6 : -1].decode())
    return tuple(_Form(form) for form in dict.fromkeys(forms))
