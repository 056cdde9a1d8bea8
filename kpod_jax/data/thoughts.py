"""Separates a reasoning model's thought from its answer text."""

import re

# The tags of DeepSeek-R1, Qwen, Seed-OSS, LongCat and others; of Magistral, Kimi and OpenThoughts;
# and the channels of gpt-oss.
_TAGS = r"think|thinking|thought|thoughts|reasoning|reflection|scratchpad|seed:think|longcat_think"
_CHANNEL = r"(?:<\|start\|>assistant)?<\|channel\|>"
_OPEN = re.compile(
    rf"\s*(?:<(?:{_TAGS})>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|{_CHANNEL}analysis<\|message\|>)",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    rf"</(?:{_TAGS})>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>"
    rf"|(?:<\|end\|>)?{_CHANNEL}final<\|message\|>",
    re.IGNORECASE,
)


def split_thought(text: str) -> tuple[str, str]:
    """Splits text at the end of its thought, such as `<think>2 + 3 = 5</think>The answer is 5.`.

    The opening tag may be missing, since chat templates often write it into the prompt.

    Returns:
      The thought and the text after it, both stripped. Text without a tag has an empty thought; a
      thought that is never closed was cut off, so the text after it is empty.
    """
    start = _OPEN.match(text)
    body = text[start.end() :] if start else text
    end = None
    for end in _CLOSE.finditer(body):  # noqa: B007 (only the last match is used)
        pass
    if end is not None:
        return body[: end.start()].strip(), body[end.end() :].strip()
    return (body.strip(), "") if start else ("", text.strip())
