"""Reads text, thought and refusal of a chat completion's message, in the forms endpoints use."""

import dataclasses
from typing import Any

# Fields that hold a thought beside the content, the most faithful first.
_THOUGHT_FIELDS = (
    "reasoning_content",  # DeepSeek, vLLM, SGLang, Qwen.
    "reasoning",  # vLLM, OpenRouter, Groq, Ollama.
    "thinking",
    "reasoning_text",
    "reasoning_details",  # OpenRouter.
    "thinking_blocks",  # LiteLLM.
)
# Fields of a part that may hold its text, directly or in further parts.
_TEXT_FIELDS = ("text", "refusal", "thinking", "reasoning", "summary", "content", "value", "parts")
_MAX_DEPTH = 5


@dataclasses.dataclass(frozen=True)
class Message:
    """A message's contents, each "" if there is none.

    Attributes:
      text: the content, unchanged, so it may hold a thought between tags.
      thought: the thought that comes apart from the content.
      refusal: the words of a refusal.
    """

    text: str = ""
    thought: str = ""
    refusal: str = ""


def read_message(message: dict[str, Any]) -> Message:
    """Reads a message whose content is a text, a list of parts, or null."""
    content = message.get("content")
    texts, thoughts, refusals = [], [], [_text(message.get("refusal"))]
    for part in content if isinstance(content, list) else [content]:
        kind = _kind(part)
        if kind == "refusal":
            refusals.append(_text(part))
        elif kind == "thought":
            thoughts.append(_text(part))
        elif kind == "text":
            texts.append(_text(part))
    apart = (_text(message.get(name)).strip() for name in _THOUGHT_FIELDS)
    thought = next(filter(None, apart), "") or _join(thoughts, "\n\n")
    return Message(_join(texts), thought.strip(), _join(refusals).strip())


def _kind(part: Any) -> str:
    if not isinstance(part, dict):
        return "text"
    kind = str(part.get("type", "text")).lower()
    if part.get("thought") is True or any(word in kind for word in ("think", "reason", "thought")):
        return "thought"
    return "other" if "tool" in kind else "refusal" if kind == "refusal" else "text"


def _text(value: Any, depth: int = 0) -> str:
    """Returns the text of a part, of a list of parts, or of text itself; "" for anything else."""
    if isinstance(value, str):
        return value
    if depth < _MAX_DEPTH and isinstance(value, list):
        return _join([_text(item, depth + 1) for item in value])
    if depth < _MAX_DEPTH and isinstance(value, dict):
        texts = (_text(value.get(name), depth + 1) for name in _TEXT_FIELDS)
        return next(filter(None, texts), "")
    return ""


def _join(parts: list[str], separator: str = "") -> str:
    """Joins parts, on a new line where one would run into the sentence that the next begins."""
    joined = ""
    for part in filter(None, parts):
        runs_on = joined and not joined[-1].isspace() and (part[0].isupper() or part[0] in "#*")
        joined += (separator or ("\n" if runs_on else "")) * bool(joined) + part
    return joined
