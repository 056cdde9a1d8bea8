"""Reads `teacher.extra_body`: further fields of every request."""

import json
import os
import re
from typing import Any

from kpod_jax.config.defaults import Config
from kpod_jax.utils.errors import UserError

# Fields that have their own key or would change what a response is.
_RESERVED = {
    "model": "teacher.model",
    "messages": "teacher.prompt, teacher.instruction and teacher.examples",
    "n": "teacher.samples",
    "stream": "no field, because answers are not streamed",
    "logprobs": "teacher.logprobs",
    "top_logprobs": "teacher.logprobs",
}
# Only one of these limits a response.
LIMITS = ("max_tokens", "max_completion_tokens")
_SECRET = re.compile(
    r"(?:.*[_-])?(?:api[_-]?key|authorization|password|secret|(?:access|auth|api|bearer)[_-]?token"
    r"|token)",
    re.IGNORECASE,
)


def extra_fields(teacher: Config) -> dict[str, Any]:
    """Returns the fields of `teacher.extra_body`; None stands for a field to leave out.

    Raises:
      UserError: it is not a JSON object, or has a field that has its own key or is a secret; the
        message does not show its value.
    """
    if not teacher.extra_body.strip():
        return {}
    try:
        fields = json.loads(teacher.extra_body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise UserError(
            "teacher.extra_body: expected a JSON object, such as "
            '\'{"top_k": 20, "chat_template_kwargs": {"enable_thinking": true}}\''
        )
    for name in _RESERVED.keys() & fields.keys():
        raise UserError(f"teacher.extra_body: {name!r} cannot be set here; use {_RESERVED[name]}")
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if _has_secret(fields) or (len(key) > 4 and key in teacher.extra_body):
        raise UserError(
            "teacher.extra_body: expected no keys, tokens or passwords, because it is stored with "
            "the run; the key is read from the environment variable OPENAI_API_KEY"
        )
    return fields


def apply(options: dict[str, Any], fields: dict[str, Any], sample: int) -> dict[str, Any]:
    """Returns a request's options with extra fields, which take precedence.

    Args:
      options: fields from other keys.
      fields: fields of `extra_fields`.
      sample: number of the sample. It is added to a `seed`, so that samples differ.
    """
    if any(name in fields for name in LIMITS):
        options = {name: value for name, value in options.items() if name not in LIMITS}
    merged = options | fields
    if type(merged.get("seed")) is int:
        merged["seed"] += sample
    return {name: value for name, value in merged.items() if value is not None}


def _has_secret(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_has_secret, value))
    if not isinstance(value, dict):
        return False
    return any(_SECRET.fullmatch(name) or _has_secret(inner) for name, inner in value.items())


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
