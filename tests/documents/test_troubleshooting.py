"""Messages that docs/troubleshooting.md quotes are messages of the program."""

import ast
import functools
import re

from tests.conftest import ROOT

PAGE = ROOT / "docs/troubleshooting.md"
# Quoted, but no message: a file and its entry.
NOT_MESSAGES = {"devices", "config.json"}


@functools.cache
def messages() -> tuple[str, ...]:
    """Texts of the program, what is filled in being a NUL; of the Makefile all of it."""
    found = [(ROOT / "Makefile").read_text()]
    for path in (ROOT / "kpod_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "\0" for p in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def symptoms() -> list[str]:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [row.split(" | ")[0].removeprefix("| ") for row in rows]


def quoted(symptom: str) -> list[str]:
    return [text for text in re.findall(r"`([^`]+)`", symptom) if text not in NOT_MESSAGES]


def test_quoted_messages_exist():
    texts = [text for symptom in symptoms() for text in quoted(symptom)]
    missing = [text for text in texts if not any(text in message for message in messages())]
    assert missing == []
    assert len(texts) >= 20 and min(map(len, texts)) >= 9


def test_a_message_that_is_none_is_seen():
    assert not any("No Python 2.7 or newer" in message for message in messages())
    assert quoted("`one` … `two`, in `config.json`") == ["one", "two"]
