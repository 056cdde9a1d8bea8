r"""Compares mathematical answers, such as `3\pi` and `x^2 + 1`, with the math-verify package."""

import functools
import logging
import re
import threading
from typing import Any

from kpod_jax.data import numbers
from kpod_jax.data.announcements import Region
from kpod_jax.utils.errors import UserError

# Maximum length and nesting of an answer; the time to parse it grows quickly with both.
_MAX_LENGTH = 300
_MAX_DEPTH = 12
# Powers and factorials of larger numbers take time and memory that nothing can interrupt.
_MAX_POWER = 1000
_SECONDS = 5

_FORMULA = re.compile(r"\$\$?([^$]{1,300})\$\$?|\\\((.{1,300}?)\\\)|\\\[(.{1,300}?)\\\]", re.DOTALL)
_NAMED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname|begin|end) ?\{[^{}]{0,80}\}")
# A word, which math-verify would read as the product of its letters.
_WORD = re.compile(
    r"(?<![\\A-Za-z])(?!(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|max|min|gcd|lcm|mod)\b)"
    r"[A-Za-z]{3,}"
)


@functools.cache
def require() -> Any:
    """Returns the math_verify module.

    Raises:
      UserError: it is not installed.
    """
    try:
        import math_verify
    except ImportError as error:
        raise UserError(
            "data.answer_kind='math' needs the package math-verify: pip install math-verify, or "
            "the extra [math]."
        ) from error
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # A wrong answer is no warning.
    return math_verify


def read(region: Region) -> str | None:
    r"""Returns the expression that is the answer in a region of text, as it is written.

    It is the first formula between dollars or `\(...\)` after an announcement (the last one of a
    text that announces none), else the sentence without its left sides, else its number.
    """
    formulas = [next(filter(None, match.groups())) for match in _FORMULA.finditer(region.text)]
    if formulas:
        candidates = formulas[:1] if region.announced else formulas[-1:]
    else:
        candidates = [re.split(r"[.!?](?:\s|\Z)|\n", region.text.lstrip(" :*"), maxsplit=1)[0]]
    for candidate in candidates:
        for side in (candidate, candidate.rpartition("=")[2]):
            if found := parse(side):
                return found
    number = numbers.read(region)
    return None if number is None else number.text


def parse(text: str) -> str | None:
    """Returns an expression as it is written, without dollars, or None if it is none."""
    text = " ".join(text.split()).strip(" *:").rstrip(".,;")
    for opening, closing in (("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("\\boxed{", "}")):
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening):
            text = text[len(opening) : len(text) - len(closing)].strip()
    return text if text and _readings(text) else None


def equal(prediction: str, gold: str) -> bool:
    """Returns whether two expressions are equal, by the rules of math-verify."""
    left, right = _readings(gold), _readings(prediction)
    if not left or not right:
        return False
    return bool(require().verify(list(left), list(right), timeout_seconds=_timeout()))


@functools.lru_cache(4096)
def _readings(text: str) -> tuple[Any, ...]:
    """Returns math-verify's readings of an expression; none if it is none or is too large."""
    module = require()
    too_large = len(text) > _MAX_LENGTH or _depth(text) > _MAX_DEPTH
    if too_large or _WORD.search(_NAMED.sub("", text)) or "$" in text:
        return ()
    readings = module.parse(
        f"${text}$",
        extraction_config=[module.LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=_timeout(),
    )
    return () if any(map(_is_huge, readings)) else tuple(readings)


def _is_huge(node: Any) -> bool:
    """Returns whether a SymPy expression has a power or factorial that takes too long."""
    if any(map(_is_huge, getattr(node, "args", ()))):
        return True
    name = type(node).__name__
    if name == "Pow":
        sizes = [node.exp]
    elif name in ("factorial", "binomial"):
        sizes = node.args
    else:
        return False
    # Those inside are not huge, so each size is quickly computed.
    return any(size.is_number and not abs(size.evalf(5)) <= _MAX_POWER for size in sizes)


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _timeout() -> int | None:
    # math-verify's limit is a signal, which only the main thread gets.
    return _SECONDS if threading.current_thread() is threading.main_thread() else None
