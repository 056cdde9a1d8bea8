"""The reference of the configuration, made of kpod_jax/config/defaults.py, its comments and checks.

    python -m kpod_jax.cli.reference            prints it
    python -m kpod_jax.cli.reference --write    writes docs/configuration.md

A comment behind a key, and lines of comment right below it, explain it; those right above or
behind a block stand above its table.
"""

import ast
import inspect
import io
import pathlib
import re
import tokenize

from absl import app, flags

from kpod_jax.cli.checks import CHOICES, FILES, OWN, RANGES
from kpod_jax.config import defaults, paper
from kpod_jax.utils import files

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "configuration.md"
_HEAD = """\
# Configuration

<!-- Made by `python -m kpod_jax.cli.reference --write`; do not edit. -->

Every key, what it is by default, what may be given, and what the KPOD paper has where it says so.
Keys are set on the command line, or in a configuration file, and are checked before any work
starts; a key that is not here does not exist.

    python -m kpod_jax.main --config=configs/t5_base.py --workdir=runs/mine \\
        --config.distill.epochs=5 --config.student.lora.targets="('q', 'v')"

A configuration file is Python. It makes the default tree, changes what it needs and sets the
method, which is what follows a colon behind the file's name (`mine.py:scotd`):

```python
from kpod_jax.config import defaults


def get_config(method="kpod"):
    config = defaults.get_config()
    config.student.model = "google/flan-t5-small"
    config.data.name = "gsm8k"
    config.distill.learning_rate = 5e-5
    return defaults.apply_method(config, method or "kpod")
```

The files of [`configs/`](../configs) come with the package: where the working directory has no such
file, `configs/t5_base.py` names the package's. A file of your own is named by its path:
`kpod-jax --config=mine.py --workdir=runs/mine`.

In the explanations, `[paper]` marks values of the KPOD paper, `[ours]` choices that it leaves
open, and `[code]` those of a baseline's public code. In the column of the paper, a range in
parentheses is the one over which it shows accuracy to move by no more than a few points. Its
results are in `kpod_jax/config/paper.py`.
"""


def text() -> str:
    """The page."""
    blocks, keys = explanations()
    values = defaults.flatten(defaults.get_config())
    parts = [_HEAD]
    for block in ["", *blocks]:
        title = f"`{block}`" if block else "Of the whole run"
        intro = f"{_linked(blocks[block])}\n\n" if blocks.get(block) else ""
        parts.append(f"\n## {title}\n\n{intro}{_TABLE_HEAD}")
        for key in (key for key in keys if key.rpartition(".")[0] == block):
            value, said = values[key], _linked(keys[key])
            cells = (f"`{key}`", _code(value), _allowed(key, value), _of_paper(key), said)
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


_TABLE_HEAD = "| key | default | type | paper | meaning |\n| --- | --- | --- | --- | --- |\n"


def explanations() -> tuple[dict[str, str], dict[str, str]]:
    """Comments of blocks and of keys in `defaults.get_config`, by their dotted names."""
    source = inspect.getsource(defaults.get_config)
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    names = {"config": ""}  # The dotted name of the block that a variable holds.
    blocks, keys, read = {}, {}, 0
    for statement in function.body:
        if not isinstance(statement, ast.Assign):
            continue
        first, last = statement.lineno, statement.end_lineno or statement.lineno
        while last < len(lines) and lines[last].lstrip().startswith("#"):
            last += 1  # It goes on below.
        said = " ".join(comments[n] for n in range(first, last + 1) if n in comments)
        target = statement.targets[-1]
        if not isinstance(target, ast.Attribute) or not isinstance(target.value, ast.Name):
            continue  # The tree itself.
        block = names[target.value.id]
        name = f"{block}.{target.attr}" if block else target.attr
        variables = [t.id for t in statement.targets if isinstance(t, ast.Name)]
        if variables:
            names[variables[0]] = name
            before = (comments[n] for n in range(read + 1, first) if n in comments)
            blocks[name] = " ".join(filter(None, (*before, said)))
        else:
            keys[name] = said
        read = last
    return blocks, keys


def _linked(text: str) -> str:
    """Names of documents as links to them."""
    return re.sub(r"\bdocs/(\w+\.md)", r"[`\1`](\1)", text)


def _code(value: object) -> str:
    if isinstance(value, float) and 0 < value < 1e-3:
        return f"`{value:.0e}`".replace("e-0", "e-")
    return f"`{value!r}`"


def _allowed(key: str, value: object) -> str:
    """The type, and what `configuration_checks.check` lets pass."""
    if key in CHOICES:
        choices = (f"`{choice}`" if choice else "`''`" for choice in CHOICES[key])
        own = f", or `{OWN[key]}`" if key in OWN else ""
        file = f", or a {FILES[key]} file" if key in FILES else ""
        return "one of " + ", ".join(choices) + own + file
    kind = type(value).__name__
    if isinstance(value, tuple):
        return f"tuple of {type(value[0]).__name__ if value else 'str'}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return kind
    low, high = RANGES.get(key, (0, float("inf")))
    if low == -float("inf"):
        return kind
    return f"{kind}, at least {low:g}" if high == float("inf") else f"{kind}, {low:g} to {high:g}"


def _of_paper(key: str) -> str:
    found = [f"`{paper.SETTINGS[key]}`"] if key in paper.SETTINGS else []
    by_value: dict[str, list[str]] = {}
    for student in paper.STUDENTS.values():
        if key == "distill.epochs":
            value = " or ".join(map(str, sorted(set(student.epochs.values()))))
        elif key in student.settings:
            value = str(student.settings[key])
        else:
            continue
        by_value.setdefault(value, []).append(student.name)
    found += [f"`{value}` ({', '.join(names)})" for value, names in by_value.items()]
    if key in paper.SENSITIVITY:
        low, high = paper.SENSITIVITY[key]
        found.append(f"({low:g} to {high:g})")
    return ", ".join(found)


def main(argv: list[str]) -> None:
    """Prints the page, or writes it."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if flags.FLAGS.write:
        files.write_text(PAGE, text())
        print(PAGE)
    else:
        print(text(), end="")


if __name__ == "__main__":
    # Here, as benchmarks have a flag of that name, too.
    flags.DEFINE_bool("write", False, "Writes docs/configuration.md instead.")
    app.run(main)
