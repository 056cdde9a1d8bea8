"""Hooks of MkDocs, which let it read the pages as GitHub does."""

import pathlib
import re
from collections.abc import Iterator

from markdown_it import MarkdownIt
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = ("examples/notebook.py",)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each notebook."""
    for name in NOTEBOOKS:
        source = f"[`{name}`]({config.repo_url}/blob/main/{name})"
        content = notebook((ROOT / name).read_text(encoding="utf-8"), source)
        page = str(pathlib.PurePath(name).with_suffix(".md"))
        files.append(File.generated(config, page, content=content))
    return files


def notebook(text: str, source: str) -> str:
    """Returns a script in cells ("percent format") as Markdown, with a link to it below its title.

    Args:
      text: the script; cells start with `# %%` or `# %% [markdown]`.
      source: the link.
    """
    parts = []
    for kind, cell in re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n?)*)", text, re.MULTILINE):
        if "markdown" in kind:
            parts.append(re.sub(r"^# ?", "", cell, flags=re.MULTILINE).strip())
        else:
            parts.append(f"```python\n{cell.strip()}\n```")
    title, _, rest = parts[0].partition("\n")
    return "\n\n".join(
        [title, f"The notebook {source}, without its outputs.", rest.strip(), *parts[1:]]
    )


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_) -> str:
    """Adapts links and lists."""
    return "\n".join(wide_lists(links(markdown, page.file.src_uri, config)))


def links(markdown: str, page: str, config: MkDocsConfig) -> str:
    """Links that leave docs/ lead to the page of a notebook, or to the repository."""
    docs = pathlib.Path(config.docs_dir)

    def linked(match: re.Match) -> str:
        path, hash, anchor = match[1].partition("#")
        target = (docs / page).parent.joinpath(path).resolve()
        if target.is_relative_to(docs):
            return match[0]
        name = target.relative_to(ROOT).as_posix()
        if name in NOTEBOOKS:
            return f"]({'../' * page.count('/')}{name.removesuffix('.py')}.md)"
        kind = "tree" if target.is_dir() else "blob"
        return f"]({config.repo_url}/{kind}/main/{name}{hash}{anchor})"

    return re.sub(r"\]\((\.\./[^()\s]*)\)", linked, markdown)


def wide_lists(markdown: str) -> Iterator[str]:
    """Yields the lines, with lists as Python-Markdown reads them.

    It wants an empty line before a list and four columns before what continues an item; GitHub
    wants the columns of the item's marker.
    """
    lines = markdown.split("\n")
    starts = set()
    for token in MarkdownIt("gfm-like", {"linkify": False}).parse(markdown):
        first, end = token.map or (0, 0)
        if token.type in ("bullet_list_open", "ordered_list_open") and not token.level:
            starts.add(first)
        elif token.type == "list_item_open":
            width = len(token.info + token.markup) + 1
            for n in range(first + 1, end):
                if lines[n].startswith(" "):
                    lines[n] = " " * (4 - width) + lines[n]
    for n, line in enumerate(lines):
        if n in starts and n and lines[n - 1].strip():
            yield ""
        yield line
