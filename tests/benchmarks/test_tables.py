import types

import pytest

from benchmarks import tables

PAGE = "Before.\n\n<!-- speed -->\n{}\nAfter.\n\n<!-- parity -->\n"


@pytest.mark.parametrize("old", ["", "| old |\n| --- |\n"])
def test_a_table_stands_behind_its_marker_and_all_else_stays(tmp_path, old):
    page = tmp_path / "page.md"
    page.write_text(PAGE.format(old))
    tables.put(str(page), "speed", ["| a |", "| - |", "| 1 |"])
    assert page.read_text() == PAGE.format("| a |\n| - |\n| 1 |\n")
    tables.put(str(page), "parity", ["| b |"])  # At the page's end.
    assert page.read_text() == PAGE.format("| a |\n| - |\n| 1 |\n") + "| b |\n"


def test_only_known_tables_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(tables, "ONLY", types.SimpleNamespace(value=["b"]))
    assert tables.only(["a", "b"]) == ["b"]
    with pytest.raises(SystemExit, match="--only=b: expected names among a, c"):
        tables.only(["a", "c"])
