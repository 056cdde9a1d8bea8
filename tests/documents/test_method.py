"""Names that the documents give are those of the code."""

import ast
import functools
import importlib.util
import pathlib
import re

import pytest

from kpod_jax.cli import usage
from kpod_jax.config import defaults
from kpod_jax.utils import config_dict
from tests.conftest import ROOT
from tests.documents.markdown import PAGES

_NAME = re.compile(r"`([\w/.]+\.py)::([\w.]+)`")


@functools.cache
def defined(path: pathlib.Path) -> frozenset[str]:
    """Functions, classes, their methods, and module-level variables of a file."""

    def names(body: list[ast.stmt], before: str = ""):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield before + node.name
            elif isinstance(node, ast.ClassDef):
                yield before + node.name
                yield from names(node.body, f"{before}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from (before + t.id for t in targets if isinstance(t, ast.Name))

    return frozenset(names(ast.parse(path.read_text()).body))


@pytest.mark.parametrize("page", PAGES)
def test_every_name_exists(page):
    for file, name in _NAME.findall((ROOT / page).read_text()):
        assert (ROOT / file).is_file(), file
        assert name in defined(ROOT / file), f"{file}::{name}"


def test_the_method_has_every_equation_with_code_and_a_test():
    page = (ROOT / "docs/method.md").read_text()
    parts = re.split(r"^- \*\*", page, flags=re.MULTILINE)[1:]
    shown = {}
    for part in parts:
        for number in re.findall(r"Eq\. (\d+)", part.partition("**")[0]):
            shown[int(number)] = part
    assert sorted(shown) == [*range(1, 14), 15]
    for number, part in shown.items():
        files = [file for file, _ in _NAME.findall(part)]
        assert any(file.startswith("kpod_jax/") for file in files), number
        assert any(file.startswith("tests/") for file in files), number


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    for name in re.findall(
        r"`((?:kpod_jax|configs|benchmarks|tests|launch|docs|examples)/[\w/.]*)`",
        (ROOT / page).read_text(),
    ):
        assert (ROOT / name).exists(), name


def is_module(parts: list[str]) -> bool:
    try:
        return importlib.util.find_spec(".".join(parts)) is not None
    except ModuleNotFoundError:  # What stands before it is no package.
        return False


@pytest.mark.parametrize("page", PAGES)
def test_dotted_names_exist(page):
    for name in re.findall(r"`(kpod_jax(?:\.\w+)+)`", (ROOT / page).read_text()):
        parts = name.split(".")
        count = next(n for n in range(len(parts), 0, -1) if is_module(parts[:n]))
        found: object = importlib.import_module(".".join(parts[:count]))
        for part in parts[count:]:
            found = getattr(found, part)


def test_figures_of_the_readme_are_those_of_the_pages():
    """Of the rows of "What was measured": each number stands on the page that it links to."""
    text = (ROOT / "README.md").read_text().partition("## What was measured")[2]
    rows = re.findall(r"^\| (?!what|---)(.*) \|$", text.partition("## Bring")[0], re.MULTILINE)
    assert len(rows) >= 4
    for row in rows:
        what, result, _, link = row.split(" | ")
        target = re.search(r"\]\(((?:docs|benchmarks)/\w+\.md)\)", link)
        assert target is not None
        page = (ROOT / target[1]).read_text()
        for number in re.findall(r"\d[\d.,e-]*\d", f"{what.partition('(Eq')[0]} {result}"):
            assert number in page, f"{number} is not in {target[1]}"


@pytest.mark.parametrize("page", PAGES)
def test_keys_modes_and_flags_in_the_text_exist(page):
    text = (ROOT / page).read_text()
    keys = config_dict.flatten(defaults.get_config()).keys()
    blocks = {key.rpartition(".")[0] for key in keys}
    rooms = {block.partition(".")[0] for block in blocks}
    code = " ".join(re.findall(r"`([^`\n]+)`", text))
    for name in re.findall(r"(?<![\w./-])(?:--config\.)?([a-z]+\.[a-z_.*]*[a-z_*])\b(?!\()", code):
        room, _, last = name.partition(".")
        if room in rooms and last not in ("py", "npz", "json", "jsonl", "html", "sh", "md"):
            pattern = re.compile(re.escape(name).replace(r"\*", r"\w*"))
            known = (*keys, *blocks, *config_dict.RENAMED)
            assert any(map(pattern.fullmatch, known)), name
    for mode in re.findall(r"--mode=(\w+)", text):
        assert mode in usage.MODES, mode
