"""How far long work is: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from typing import IO

from tqdm import tqdm

from kpod_jax.utils import files

_LINE = "{desc}: {n_fmt}/{total_fmt} {unit} ({percentage:.0f} %), {elapsed} gone, {remaining} left"


class Progress:
    """Counts up to a total; only the first process shows anything.

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
        """Shows the bar, or nothing yet where there is no terminal.

        Args:
          total: how much there is to do.
          description: what is being done.
          unit: what is counted.
          initial: how much was done before, by a run that is gone on with.
          seconds: time between two lines where there is no terminal.
          file: where to show it; standard error if None.
        """
        self._file = sys.stderr if file is None else file
        self._is_first = files.is_writer()
        self._description, self._unit, self._total = description, unit, total
        self._initial = self._done = initial
        self._seconds = seconds
        self._began = self._shown = time.monotonic()
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
        """Counts on and shows `values` beside the count, such as the loss, in four digits."""
        self._done += count
        if values:
            self._values = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._values, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._shown >= self._seconds:
            self._print_line()

    def close(self) -> None:
        """Leaves the bar as it is; without a terminal, says how far it came if it spoke before."""
        if self._bar is not None:
            self._bar.close()
        elif self._shown != self._began:
            self._print_line()

    def _print_line(self) -> None:
        self._shown = time.monotonic()
        if not self._is_first:
            return
        line = tqdm.format_meter(
            self._done,
            self._total,
            self._shown - self._began,
            initial=self._initial,
            prefix=self._description,
            unit=self._unit,
            bar_format=_LINE,
        )
        print(line + (f", {self._values}" if self._values else ""), file=self._file, flush=True)
