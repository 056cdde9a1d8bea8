"""Finish reasons: whether the teacher ended its text itself, under the names endpoints use."""

import re
from typing import Any

# The teacher ended its text, in the words of OpenAI, Anthropic, Gemini, TGI, Cohere, Bedrock, ...
_WHOLE = {
    *("stop", "stopped", "stop_sequence", "stop_token", "end_turn", "end", "endoftext", "eos"),
    *("eos_token", "complete", "completed", "finish", "finished", "done"),
}
_TOO_LONG = {
    *("length", "max_tokens", "max_new_tokens", "max_output_tokens", "max_length", "token_limit"),
    *("limit", "incomplete", "model_length", "model_context_window_exceeded"),
}
# The endpoint broke off, so asking again may help.
_BROKEN_OFF = {
    *("error", "abort", "aborted", "cancel", "cancelled", "canceled", "failed", "network_error"),
    *("insufficient_system_resource", "time_limit", "timeout", "not_finished", "unavailable"),
}


def read_finish(choice: dict[str, Any]) -> str | None:
    """Returns the finish reason of a choice as text, or None if it has none."""
    reason = choice.get("finish_reason") or choice.get("stop_reason")
    if isinstance(reason, dict):  # SGLang: {"type": "stop", "matched": …}.
        reason = reason.get("type")
    return None if reason is None or reason == "" else str(reason)


def problem(finish: str | None, announced: bool) -> str:
    """Returns why a text is not whole, or "" if it is.

    Args:
      finish: the finish reason. Some endpoints give none; then a text is whole if it announces
        its answer.
      announced: whether the text announces its answer, as in "the answer is 7".
    """
    name = _name(finish)
    if name in _WHOLE or (not name and announced):
        return ""
    advice = "; raise teacher.max_tokens" if name in _TOO_LONG else ""
    return f"the text is not whole (finish_reason {finish or 'missing'}){advice}"


def broken_off(finish: str | None) -> bool:
    """Returns whether the endpoint broke off, so the request should be sent again."""
    return _name(finish) in _BROKEN_OFF


def _name(finish: str | None) -> str:
    name = re.sub(r"[^a-z0-9]+", "_", (finish or "").lower()).strip("_")
    return name.removeprefix("finish_reason_")
