"""Text from outside is shown escaped: it neither controls a terminal nor forges its lines."""

import io
import json
import logging as standard_logging

import numpy as np
import pytest
from absl import logging
from absl.testing import flagsaver

from kpod_jax import main, report
from kpod_jax.data import overlap, records
from kpod_jax.data.records import Record, Rejected
from kpod_jax.parallel import processes
from kpod_jax.report import terminal
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.printable import message, printable
from tests.report import workdirs

HOSTILE = {
    "\x1b[2J": r"\x1b[2J",  # Clears the screen.
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x1b]8;;http://x\x1b\\": r"\x1b]8;;http://x\x1b" + "\\",
    "\x9b31m": r"\x9b31m",  # C1: the same as ESC [.
    "\r": r"\r",
    "\b\b": r"\x08\x08",
    "\x00": r"\x00",
    "\x7f": r"\x7f",
    "\x85": r"\x85",  # Ends a line.
    "\u2028": r"\u2028",
    "\u202e": r"\u202e",  # Text runs backwards from here.
    "\u2066": r"\u2066",
    "\u200b": r"\u200b",
    "\ufeff": r"\ufeff",
    "\xad": r"\xad",
    "\U000e0041": r"\U000e0041",  # An invisible "A".
    "\udcff": r"\udcff",  # A byte of a file's name that is not UTF-8.
    "\n": r"\n",
}
FINE = ["a b", "Größe 5 °C", "日本語", "नमस्ते", "می‌خواهم", "👩‍👩‍👧", "x\u00a0y", "½ → ∑", "e\u0301"]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_control_and_invisible_characters_are_escaped(text):
    assert printable(f"a{text}b") == f"a{HOSTILE[text]}b" == message(f"a{text}b")
    message(text).encode()


@pytest.mark.parametrize("text", FINE)
def test_what_people_write_is_left_as_it_is(text):
    assert printable(text) == message(text) == text


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_errors_logs_and_warnings_show_it_escaped(monkeypatch, capsys, text):
    def fail():
        processes.log(f"rationales: record a{text}error: forged is rejected")
        logging.warning("record %s", f"a{text}error: forged")
        raise UserError(f"record a{text}error: forged is bad")

    monkeypatch.setattr(main, "_run", fail)
    handler = logging.get_absl_handler()
    # pytest's handlers would send a lone surrogate between its processes, which they cannot.
    monkeypatch.setattr(standard_logging.getLogger(), "handlers", [handler])
    logged = io.StringIO()
    monkeypatch.setattr(handler.python_handler, "stream", logged)
    before = handler.formatter
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
        main.main(["main"])
    handler.setFormatter(before)
    shown = capsys.readouterr()
    assert stop.value.code == 2
    expected = f"record a{HOSTILE[text]}error: forged"
    assert shown.out == f"rationales: {expected} is rejected\n"
    before_it, _, after_it = shown.err.partition(f"error: {expected} is bad\n")
    assert not after_it
    # absl logs to stderr until flags are parsed.
    assert f"{expected}\n" in before_it + logged.getvalue()
    assert all("error: forged" not in line[:14] for line in shown.err.split("\n"))


def test_a_list_of_faults_keeps_its_lines(monkeypatch, capsys):
    def fail(text):
        raise UserError(text)

    for text, shown in (
        ("Bad:\n  a\x1b\n  b\nc", "error: Bad:\n  a\\x1b\n  b\\nc\n"),
        ("Bad:\n  a", "error: Bad: a\n"),
    ):
        monkeypatch.setattr(main, "_run", lambda text=text: fail(text))
        with flagsaver.flagsaver(), pytest.raises(SystemExit):
            main.main(["main"])
        assert capsys.readouterr().err == shown


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_ids_in_lists_of_records_show_it_escaped(text):
    name, shown = f"a{text}  b", f"a{HOSTILE[text]}  b"
    with pytest.raises(UserError) as raised:
        records.check_rejected_fraction([Rejected(name, f"has {text}")], 1, 0.0)
    assert f"\n  {shown}: has {HOSTILE[text]}\n  Fix them" in str(raised.value)
    record = Record(name, "How?", ("A.",), "1")
    assert f"{shown} = {shown}" in overlap.describe({"train": [record], "test": [record]})


@pytest.mark.parametrize("text", [t for t in HOSTILE if t != "\n"], ids=ascii)
def test_the_heat_map_shows_it_escaped(text):
    record = Record(f"i{text}", f"q{text}", (f"He has{text} two.",), f"a{text}")
    spans, weights = np.array([[0, 2], [3, 6]]), np.array([0.0, 0.5])
    shown = terminal.heat_map(record, spans, weights, colours=False)
    assert shown.count(HOSTILE[text]) == 4 and text not in shown


def test_the_report_shows_it_escaped(tmp_path):
    root = workdirs.build(tmp_path / "run")
    path = next((root / "predictions").glob("*.jsonl"))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    hostile = [text for text in HOSTILE if text not in ("\n", "\udcff", "\r")]
    for row in rows:
        row["question"] = row["prediction"] = "<b>" + "".join(hostile)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = report.write(root).read_text()
    assert not any(text in page for text in hostile)
    assert "&lt;b&gt;\\x1b[2J" in page and r"\u202e" in page
