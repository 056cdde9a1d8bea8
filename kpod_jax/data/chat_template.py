"""Renders chat templates, which are programs of strangers, with bounds on time and memory.

A template cannot reach files or Python's objects, since transformers renders it in Jinja's sandbox.
The sandbox bounds neither loops nor texts, so it runs in a process of its own.
"""

import functools
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from kpod_jax.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_MAX_CHARACTERS = 1 << 20
_SECONDS = 2
_BYTES = 1 << 30
_START_SECONDS = 300  # Importing takes one, but machines may be very busy.
_CODE = """
import json, sys
from transformers.utils.chat_template_utils import render_jinja_template
arguments, seconds, size, characters = json.load(sys.stdin)
try:
    import resource
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds += int(used.ru_utime + used.ru_stime) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    with open("/proc/self/statm") as file:
        size += int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
except (ImportError, OSError, ValueError):  # Not on this system.
    pass
try:
    text = render_jinja_template(**arguments)[0][0]
    if len(text) > characters:
        raise ValueError(f"it gives {len(text)} characters; expected {characters} at most.")
    found = [text, None]
except MemoryError:
    found = [None, "it takes too much memory."]
except BaseException as error:
    found = [None, " ".join(str(error)[:500].split()) or type(error).__name__]
sys.stdout.buffer.write(json.dumps(found).encode())
"""


# Arguments that `student.chat_template_kwargs` may not set, because `render` and its callers do.
_RESERVED = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversations",
    "date_directives",
    "messages",
    "return_assistant_tokens_mask",
}


def arguments(text: str) -> dict[str, Any]:
    """Parses `student.chat_template_kwargs`, the user's arguments of a chat template.

    Raises:
      UserError: it is not a JSON object, or has an argument that is always set by this program.
    """
    key = f"student.chat_template_kwargs={text!r:.80}"
    try:
        values = json.loads(text or "{}")
        json.dumps(values, allow_nan=False, ensure_ascii=False).encode()  # prompt.json holds them.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f'{key}: expected a JSON object, such as {{"enable_thinking": false}}')
    if wrong := sorted(name for name in values if name in _RESERVED or name.endswith("_token")):
        raise UserError(f"{key}: {wrong[0]!r} cannot be set here; leave it out")
    return values


def render(
    tokenizer: "PreTrainedTokenizerFast", turns: list[dict[str, str]], /, **values: Any
) -> str:
    """Renders a conversation, up to where the assistant begins, with a tokenizer's template.

    Args:
      tokenizer: whose special tokens are passed to the template.
      turns: the conversation.
      **values: other values that are passed; `chat_template` replaces the tokenizer's.

    Raises:
      UserError: there is no template, it is wrong, or takes too long, too much memory or space.
      ValueError: the tokenizer has no template, or several.
    """
    template = tokenizer.get_chat_template(values.pop("chat_template", None))
    arguments = {
        "conversations": [turns],
        "chat_template": template,
        "add_generation_prompt": True,
        **tokenizer.special_tokens_map,
        **values,
    }
    return _run(json.dumps([arguments, _SECONDS, _BYTES, _MAX_CHARACTERS], default=str))


@functools.lru_cache(maxsize=8)
def _run(given: str) -> str:
    command = [sys.executable, "-P", "-c", _CODE]
    try:
        done = subprocess.run(
            command, input=given.encode(), capture_output=True, timeout=_START_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"it took longer than {_START_SECONDS} seconds.") from error
    if done.returncode < 0:
        raise UserError(f"it took longer than {_SECONDS} seconds, or too much memory.")
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines() or [""]
        raise UserError(f"rendering it failed ({reason[-1]:.200}).")
    text, problem = json.loads(done.stdout)
    if text is None:
        raise UserError(problem)
    return text
