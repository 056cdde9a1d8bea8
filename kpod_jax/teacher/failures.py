"""Finds errors in response bodies, which some endpoints and gateways send with status 200."""

import json
import re
from typing import Any, NamedTuple

# Fields that hold an error's message, a status, and a name of the error.
_MESSAGES = ("message", "detail", "details", "msg", "error_msg", "error_message", "errors")
_STATUSES = ("code", "status", "status_code", "http_code", "http_status", "error_code")
_NAMES = (*_STATUSES, "type", "error_type", "reason")
# Statuses by what names contain, without regard to case and underscores. The first match counts.
_BY_NAME = (
    (402, r"insufficient(quota|balance|credit|funds)|billing|paymentrequired"),
    (400, r"moderation|flagged|contentpolicy|contentfilter|contextlength"),
    (401, r"invalidapikey|authentication|unauthenticated|unauthorized"),
    (403, r"permission|forbidden"),
    (404, r"notfound"),
    (429, r"ratelimit|toomany|throttl|resourceexhausted|quota"),
    (503, r"overload|unavailable|internal|servererror|apierror|timeout|capacity|busy|badgateway"),
    (400, r"invalid|badrequest|validation|unprocessable"),
)
# Statuses by what messages contain, for errors without a telling name.
_BY_MESSAGE = (
    (400, r"\binvalid|too long|context length|unsupported|not supported|unrecognized"),
    (429, r"rate.?limit|too many requests|throttl"),
    (503, r"overload|try again|temporar|unavailable|timed? ?out|busy|at capacity|internal"),
)
_RETRIED = (408, 409, 429)


class Failure(NamedTuple):
    """An error in a response body.

    Attributes:
      status: the HTTP status that it should have had, from 400 to 599.
      message: its text, untrusted.
    """

    status: int
    message: str


def find_failure(body: Any) -> Failure | None:
    """Returns the error that a response's JSON reports, or None.

    Understood are `{"error": {…}}` and `{"error": "…"}`, at the top or in the first choice, and
    bodies without choices that hold a message, such as `{"object": "error", "message": …}`.
    """
    if isinstance(body, list) and len(body) == 1:  # Gemini.
        body = body[0]
    if not isinstance(body, dict):
        return None
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    in_choice = first.get("error") if isinstance(first, dict) else None
    error = next((e for e in (body.get("error"), in_choice) if e and e is not True), None)
    if error is None and not first:
        listed = body.get("errors")
        listed = listed[:1] if isinstance(listed, list) else []
        places = (*listed, body, body.get("base_resp"))
        error = next((place for place in places if _message(place)), None)
    if error is None:
        return None
    message = _message(error) or json.dumps(error, ensure_ascii=False)[:1000]
    status = _status([error, body] if body.get("error") or not in_choice else [error], message)
    if in_choice and not (status in _RETRIED or status >= 500):
        status = 400  # Says something about this request, not about the key or the address.
    return Failure(status, message)


def page_text(content: bytes) -> str:
    """Returns the text of a response that is not JSON, without HTML tags."""
    text = content[:20_000].decode("utf-8", "replace")
    return re.sub(r"<[^<>]*+>", " ", text)


def _message(error: Any, depth: int = 0) -> str:
    if isinstance(error, str):
        return error.strip()
    if isinstance(error, list) and depth < 3:
        return "; ".join(filter(None, (_message(item, depth + 1) for item in error[:3])))
    if not isinstance(error, dict) or depth == 3:
        return ""
    texts = (_message(error.get(name), depth + 1) for name in (*_MESSAGES, "status_msg"))
    metadata = error.get("metadata")  # OpenRouter: the provider's own words.
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    text = next(filter(None, texts), "")
    return f"{text}: {raw}" if text and isinstance(raw, str) and raw else text


def _status(places: list[Any], message: str) -> int:
    fields = [p for p in places if isinstance(p, dict)]
    numbers = (str(p.get(name, "")) for p in fields for name in _STATUSES)
    # FastChat and old vLLM append two digits: 42901; with 403 they mean an invalid request.
    found = (re.fullmatch(r"([45]\d\d)(\d\d)?", number) for number in numbers)
    number = next((400 if m[2] and m[1] == "403" else int(m[1]) for m in found if m), 0)
    words = [p[name] for p in fields for name in _NAMES if isinstance(p.get(name), str)]
    names = " ".join(re.sub(r"[^a-z ]", "", word.lower()) for word in words)
    named = next((status for status, pattern in _BY_NAME if re.search(pattern, names)), 0)
    if named == 402 or not number:  # OpenAI reports an empty account as 429.
        number = named
    lower = message[:2000].lower()
    said = (status for status, pattern in _BY_MESSAGE if re.search(pattern, lower))
    return number or next(said, 400)
