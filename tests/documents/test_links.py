"""Links between the documents lead somewhere."""

import re

import pytest

from tests.conftest import ROOT
from tests.documents.markdown import PAGES, blocks


def anchors(page) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_resolve(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(found), target


def test_every_page_is_reached_from_the_readme():
    seen, waiting = set(), ["README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        for target in re.findall(r"\]\(([^()\s#]+\.md)[^()\s]*\)", (ROOT / page).read_text()):
            if "://" not in target:
                found = ((ROOT / page).parent / target).resolve()
                waiting.append(found.relative_to(ROOT).as_posix())
    assert seen >= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_whole(page):
    """As many cells in each row as in the head; no row stands apart from its table."""
    text = (ROOT / page).read_text()
    for block in blocks(page):
        text = text.replace(block.text, "")
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [
            re.sub(r"`[^`]*`|\$[^$]*\$", "", row.replace("\\|", "")) for row in table.splitlines()
        ]
        assert re.fullmatch(r"\|( ?-+ ?\|)+", rows[1]), rows[0]
        assert len({row.count("|") for row in rows}) == 1, rows[0]
