"""The documents as a site."""

import re
import subprocess
import sys
import tomllib

import pytest
from mkdocs.config import load_config

import kpod_jax as kpod
from tests.conftest import ROOT

CONFIG = load_config(str(ROOT / "mkdocs.yml"))
hooks = CONFIG["hooks"]["docs/hooks.py"]
DOCS = ROOT / "docs"


def navigation(entry) -> list[str]:
    """Pages below an entry of the navigation, in order."""
    if isinstance(entry, str):
        return [entry]
    children = entry.values() if isinstance(entry, dict) else entry
    return [page for child in children for page in navigation(child)]


def test_every_page_is_once_in_the_navigation():
    written = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    notebooks = [name.replace(".py", ".md") for name in hooks.NOTEBOOKS]
    assert sorted(navigation(CONFIG.nav)) == sorted(written + notebooks)


def test_every_public_name_is_once_in_the_reference():
    text = "".join(path.read_text() for path in DOCS.glob("api/*.md"))
    names = re.findall(r"^::: kpod_jax\.(\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(set(kpod.__all__) - {"__version__"})


def test_the_repository_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert CONFIG.repo_url == project["urls"]["Repository"]


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("index.md", "../configs/t5_base.py", "REPO/blob/main/configs/t5_base.py"),
        ("index.md", "../configs", "REPO/tree/main/configs"),
        ("api/data.md", "../../README.md#try-it", "REPO/blob/main/README.md#try-it"),
        ("api/data.md", "../data.md#splits", "../data.md#splits"),
        ("index.md", "data.md", "data.md"),
        ("index.md", "../examples/notebook.py", "examples/notebook.md"),
        ("api/data.md", "../../examples/notebook.py", "../examples/notebook.md"),
    ],
)
def test_links_out_of_the_documents_lead_to_the_repository(page, link, expected):
    expected = expected.replace("REPO", str(CONFIG.repo_url).rstrip("/"))
    assert hooks.links(f"a [b]({link}) c", page, CONFIG) == f"a [b]({expected}) c"


def test_lists_are_indented_for_python_markdown():
    text = "Text\n- one\n  more\n\n  ```math\n  x\n  ```\n  - inner\n    more\n\n1. first\n   more"
    assert list(hooks.wide_lists(text)) == [
        "Text", "", "- one", "    more", "", "    ```math", "    x", "    ```",
        "    - inner", "        more", "", "1. first", "    more",
    ]  # fmt: skip
    code = "```\n- no list\n  more\n```"
    assert "\n".join(hooks.wide_lists(code)) == code


def test_a_notebook_becomes_text_and_code():
    script = (
        "# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1  # one\n\n# %% [markdown]\n# End"
    )
    assert hooks.notebook(script, "[here](x)") == (
        "# Title\n\nThe notebook [here](x), without its outputs.\n\nText.\n\n"
        "```python\nx = 1  # one\n```\n\nEnd"
    )


@pytest.mark.slow
def test_it_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {
        page: tmp_path / page.removesuffix(".md") / "index.html" for page in navigation(CONFIG.nav)
    }
    pages["index.md"] = tmp_path / "index.html"
    html = {page: path.read_text() for page, path in pages.items()}
    # Every formula, also those in lists.
    formulas = len(re.findall(r"^ *\$\$$", (DOCS / "method.md").read_text(), re.MULTILINE)) // 2
    assert html["method.md"].count('<div class="arithmatex">') == formulas > 10
    assert not [page for page, text in html.items() if "```" in text]
    for name in set(kpod.__all__) - {"__version__"}:
        assert sum(f'id="kpod_jax.{name}"' in text for text in html.values()) == 1, name
    # Nothing is fetched from elsewhere but MathJax; none of our sources is published.
    fetched = re.findall(
        r'<(?:script|link|img)[^>]* (?:src|href)="(https?:[^"]+)"', "".join(html.values())
    )
    assert {url for url in fetched if "mathjax" not in url} == set()
    assert not list(tmp_path.rglob("*.py*"))
