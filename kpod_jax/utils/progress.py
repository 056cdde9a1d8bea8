"""Progress of long work: a bar on a terminal, periodic lines in a log."""

import sys
import time
from typing import IO

from tqdm import tqdm

from kpod_jax.utils import files

_LINE = (
    "{desc}: {n_fmt}/{total_fmt} {unit} ({percentage:.0f} %), {elapsed} elapsed, {remaining} left"
)


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
        seconds: float = 30.0,
        file: IO[str] | None = None,
    ) -> None:
        """Starts counting, and shows the bar on a terminal.

        Args:
          total: final count.
          description: label of the work.
          unit: plural name of what is counted.
          initial: initial count, such as that of a resumed run.
          seconds: interval between lines without a terminal.
          file: output stream; None: standard error.
        """
        self._file = sys.stderr if file is None else file
        self._is_first = files.is_writer()
        self._description, self._unit, self._total = description, unit, total
        self._initial = self._done = initial
        self._seconds = seconds
        self._start = self._last_shown = time.monotonic()
        self._values = ""
        self._bar: tqdm | None = None
        if self._is_first and self._file.isatty():
            self._bar = tqdm(
                total=total,
                desc=description,
                unit=f" {unit}",
                initial=initial,
                file=self._file,
                dynamic_ncols=True,
            )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, count: int = 1, **values: float) -> None:
        """Adds to the count and shows `values`, such as the loss, to four digits."""
        self._done += count
        if values:
            self._values = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._values, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last_shown >= self._seconds:
            self._print_line()

    def close(self) -> None:
        """Closes the bar; without one, prints a last line if any was printed before."""
        if self._bar is not None:
            self._bar.close()
        elif self._last_shown != self._start:
            self._print_line()

    def _print_line(self) -> None:
        self._last_shown = time.monotonic()
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
        print(line + (f", {self._values}" if self._values else ""), file=self._file, flush=True)
