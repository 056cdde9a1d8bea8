"""Progress of long work: a bar on a terminal, periodic lines in a log."""

import statistics
import sys
import time
from typing import IO

from tqdm import tqdm

from kpod_jax.utils import files

_LINE = "{desc}: {n_fmt}/{total_fmt} {unit} ({percentage:.0f} %), {elapsed} elapsed"
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}{postfix}]"
_COMPILING = "compiling (first step) …"
# In this part of the work, updates that take this many times the median contain a compilation.
_EARLY, _OUTLIER = 0.1, 5.0


class Progress:
    """A progress counter; only the first process prints it.

    with Progress(len(batches), "Scoring", unit="batches") as progress:
        for batch in batches:
            ...
            progress.update(loss=0.71)
    """

    def __init__(
        self,
        total: int,
        description: str,
        *,
        unit: str = "steps",
        initial: int = 0,
        compiles: bool = False,
        seconds: float = 30.0,
        file: IO[str] | None = None,
    ) -> None:
        """Starts counting, and shows the bar on a terminal.

        Args:
          total: final count.
          description: label of the work.
          unit: plural name of what is counted.
          initial: initial count, such as that of a resumed run.
          compiles: whether to say that the first step is compiled.
          seconds: interval between lines without a terminal.
          file: output stream; None: standard error.
        """
        self._file = sys.stderr if file is None else file
        self._is_first = files.is_writer()
        self._description, self._unit, self._total = description, unit, total
        self._initial = self._done = initial
        self._seconds = seconds
        self._start = self._last_shown = self._last_update = time.monotonic()
        self._shown = -1
        self._values = ""
        self._early: list[tuple[float, int]] = []  # Seconds and count of early updates.
        self._later, self._later_count = 0.0, 0
        self._bar: tqdm | None = None
        if self._is_first and self._file.isatty():
            self._bar = tqdm(
                total=total,
                desc=description,
                unit=f" {unit}",
                initial=initial,
                file=self._file,
                dynamic_ncols=True,
                bar_format=_BAR,
                postfix=_COMPILING if compiles else None,
            )
        elif self._is_first and compiles:
            print(f"{description}: {_COMPILING}", file=self._file, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, count: int = 1, **values: float) -> None:
        """Adds to the count and shows `values`, such as the loss, to four digits."""
        now = time.monotonic()
        spent, self._last_update = now - self._last_update, now
        if self._done - self._initial <= _EARLY * (self._total - self._initial):
            self._early.append((spent, count))
        else:
            self._later, self._later_count = self._later + spent, self._later_count + count
        self._done += count
        if values:
            self._values = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
        if self._bar is not None:
            parts = (f"{self._remaining()} left", self._values)
            self._bar.set_postfix_str(", ".join(filter(None, parts)), refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last_shown >= self._seconds:
            self._print_line()

    def close(self) -> None:
        """Closes the bar; without one, prints a last line if any was printed before."""
        if self._bar is not None:
            self._bar.close()
        elif self._last_shown != self._start and self._shown != self._done:
            self._print_line()

    def _remaining(self) -> str:
        """Estimates the remaining time from that of the updates, without compilations."""
        early = self._early[1:]  # The first one compiles.
        if early:
            usual = statistics.median(spent / count for spent, count in early if count)
            early = [(spent, count) for spent, count in early if spent <= _OUTLIER * usual * count]
        count = self._later_count + sum(count for _, count in early)
        if not count:
            return "?"
        seconds = self._later + sum(spent for spent, _ in early)
        return tqdm.format_interval((self._total - self._done) * seconds / count)

    def _print_line(self) -> None:
        self._last_shown, self._shown = time.monotonic(), self._done
        if not self._is_first:
            return
        line = tqdm.format_meter(
            self._done,
            self._total,
            self._last_shown - self._start,
            initial=self._initial,
            prefix=self._description,
            unit=self._unit,
            bar_format=_LINE,
        )
        left = f"{self._remaining()} left" if self._done < self._total else ""
        line = ", ".join(filter(None, (line, left, self._values)))
        print(line, file=self._file, flush=True)
