import io

from kpod_jax.utils import files, progress
from kpod_jax.utils.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    """Stands in for the module `time`."""

    now = 0.0

    def monotonic(self):
        return self.now


def test_a_log_gets_a_plain_line_now_and_then(monkeypatch):
    clock, log = Clock(), io.StringIO()
    monkeypatch.setattr(progress, "time", clock)
    with Progress(110, "Scoring", unit="batches", initial=10, seconds=30, file=log) as shown:
        for _ in range(8):
            clock.now += 10
            shown.update(5, loss=0.123456)
        assert log.getvalue().splitlines() == [
            "Scoring: 25/110 batches (23 %), 00:30 elapsed, 02:50 left, loss=0.1235",
            "Scoring: 40/110 batches (36 %), 01:00 elapsed, 02:20 left, loss=0.1235",
        ]
    assert log.getvalue().splitlines()[2:] == [
        "Scoring: 50/110 batches (45 %), 01:20 elapsed, 02:00 left, loss=0.1235"
    ]
    assert "\r" not in log.getvalue()


def test_the_time_left_is_right_after_a_tenth_of_the_work(monkeypatch):
    """Two steps compile, in 40 and 30 s; the others take 1 s."""
    clock, log = Clock(), io.StringIO()
    monkeypatch.setattr(progress, "time", clock)
    with Progress(200, "Distilling", compiles=True, seconds=0, file=log) as shown:
        for step in range(200):
            clock.now += {0: 40.0, 7: 30.0}.get(step, 1.0)
            shown.update()
    first, *lines = log.getvalue().splitlines()
    assert first == "Distilling: compiling (first step) …"
    assert "? left" in lines[0]
    for done in range(20, 200, 20):
        left = lines[done - 1].partition(" elapsed, ")[2].split()[0]
        minutes, seconds = map(int, left.split(":"))
        assert abs(60 * minutes + seconds - (200 - done)) <= (200 - done) / 3
    assert lines[-1].endswith("200/200 steps (100 %), 04:28 elapsed")
    assert len(lines) == 200  # No line twice.


def test_a_terminal_says_that_it_compiles():
    terminal = Terminal()
    with Progress(3, "Scoring", compiles=True, file=terminal):
        assert "compiling (first step)" in terminal.getvalue()


def test_short_work_says_nothing_in_a_log():
    log = io.StringIO()
    with Progress(3, "Scoring", file=log) as shown:
        shown.update(3)
    assert log.getvalue() == ""


def test_a_terminal_gets_a_bar():
    terminal = Terminal()
    with Progress(3, "Scoring", file=terminal) as shown:
        shown.update(3, loss=0.5)
    assert "Scoring: 100%" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    assert "loss=0.5" in terminal.getvalue()


def test_only_the_first_process_shows(monkeypatch):
    monkeypatch.setattr(files, "_is_writer", False)
    for file in (io.StringIO(), Terminal()):
        with Progress(3, "Scoring", seconds=0, file=file) as shown:
            shown.update()
        assert file.getvalue() == ""
