"""Metrics: one JSON line per event and the scalars of trackers, fetched one step late.

`metrics.jsonl` in the work directory holds all stages. A stage that resumes from a checkpoint first
removes what it wrote after that checkpoint, so the file reads as one uninterrupted run.

Objects in a bucket cannot be appended to. There, both are written to a local directory and uploaded
once a minute and before each checkpoint.
"""

import json
import math
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import IO, Any

import jax

from kpod_jax.training import trackers
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError, why

# Seconds between uploads to a bucket.
_SEND_EVERY = 60.0


class MetricsWriter:
    """Writes the metrics of one stage; does nothing outside the first process."""

    def __init__(
        self, workdir: files.PathLike, stage: str, *, restored_step: int | None = None
    ) -> None:
        """Opens `workdir/metrics.jsonl` and, if it is tracked, `workdir/tensorboard/STAGE`.

        Args:
          workdir: the run's work directory; created if missing.
          stage: "distill", "weigh" and so on.
          restored_step: step of the checkpoint that the stage resumes from; what it wrote after
            that step is removed. None: the stage starts over, and all that it wrote is removed.

        Raises:
          UserError: the disk is full or read-only.
        """
        self._stage = stage
        self._workdir = files.as_path(workdir)
        self._path = self._workdir / "metrics.jsonl"
        self._local: tempfile.TemporaryDirectory[str] | None = None
        self._sent = time.monotonic()
        self._file: IO[str] | None = None
        self._events: Any = None  # A tensorboardX.SummaryWriter.
        self._tracking = trackers.current()
        if jax.process_index() != 0:
            return
        first_step = 0 if restored_step is None else restored_step + 1
        if restored_step is None:
            files.remove(self._workdir / "tensorboard" / stage)
        _truncate(self._path, stage, restored_step)
        folder = self._workdir
        if files.is_remote(self._workdir):
            self._local = tempfile.TemporaryDirectory()
            folder = pathlib.Path(self._local.name)
            if self._path.exists():
                (folder / "metrics.jsonl").write_bytes(self._path.read_bytes())
        try:
            self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
            if self._tracking.tensorboard:
                import tensorboardX  # Imports PyTorch if installed, which takes seconds.

                self._events = tensorboardX.SummaryWriter(
                    str(folder / "tensorboard" / stage),
                    # TensorBoard hides earlier events from this step on.
                    purge_step=first_step,
                    # File names contain the time in seconds; a quick restart would overwrite one.
                    filename_suffix=f".{first_step}",
                )
        except OSError as error:
            raise _cannot_write(self._path, error) from error

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, float | int | str | None]) -> None:
        """Writes one event; it is in the file when this returns.

        Args:
          step: step of the stage; must not decrease between calls.
          values: values by name. Numbers go to the trackers as well. NaN and infinities become null
            in `metrics.jsonl`, as JSON does not have them.

        Raises:
          UserError: the disk is full.
        """
        if self._file is None:
            return
        row = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }
        line = json.dumps({"stage": self._stage, "step": step, **row}, ensure_ascii=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        for name, value in values.items():
            if isinstance(value, float | int) and self._events is not None:
                self._events.add_scalar(name, value, step)
        for service in self._tracking.services:
            service.log(self._stage, step, trackers.numbers(values))
        if time.monotonic() - self._sent > _SEND_EVERY:
            self.send()

    def send(self) -> None:
        """Uploads what was written so far to a bucket; does nothing for a local work directory."""
        if self._local is None:
            return
        if self._events is not None:
            self._events.flush()
        files.copy_folder(self._local.name, self._workdir)
        self._sent = time.monotonic()

    def close(self) -> None:
        """Flushes the TensorBoard events and closes the files."""
        if self._events is not None:
            self._events.close()
        if self._file is not None:
            self._file.close()
            self.send()
        if self._local is not None:
            self._local.cleanup()


class OneStepLate:
    """Keeps a step's metrics on the device until the next step has started.

    Reading a value of the step that just started blocks until the step is done, and the device then
    waits for the host. The previous step's values are ready, or soon will be, while the next one
    runs:

        late = OneStepLate()
        for step in range(steps):
            state, metrics = train_step(state, batch)  # Returns at once.
            if (done := late.push(step, metrics)) is not None:
                write(*done)
        if (done := late.flush()) is not None:
            write(*done)
    """

    def __init__(self) -> None:
        """Initializes without pending metrics."""
        self._pending: tuple[int, Any] | None = None

    def push(self, step: int, metrics: Any) -> tuple[int, Any] | None:
        """Stores the metrics of `step` and returns those of the previous step.

        Args:
          step: the step that was just started.
          metrics: pytree of scalars on the device, the same on all devices.

        Returns:
          (step, pytree of Python numbers) of the previous call; None on the first call.
        """
        for leaf in jax.tree.leaves(metrics):
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()
        done = self.flush()
        self._pending = (step, metrics)
        return done

    def flush(self) -> tuple[int, Any] | None:
        """Waits for the last step and returns it as `push` does; None if nothing is pending."""
        if self._pending is None:
            return None
        step, metrics = self._pending
        self._pending = None
        return step, jax.tree.map(lambda leaf: leaf.item(), jax.device_get(metrics))


def _truncate(path: pathlib.Path, stage: str, restored_step: int | None) -> None:
    """Removes a stage's lines after a step (None: all of them) and an incomplete last line."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    kept = []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):  # Interrupted while writing the last line.
            continue
        try:
            row = json.loads(line)
            same_stage, step = row["stage"] == stage, row["step"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}, line {number} is not a metrics record: expected a JSON object with "
                f'"stage" and "step", got {line[:80]!r}. Remove the line, or the whole file.'
            ) from error
        if not same_stage or (restored_step is not None and step <= restored_step):
            kept.append(line)
    if kept != lines:
        with files.atomic_write(path) as file:
            file.writelines(kept)
    elif not files.is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def _cannot_write(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot write {path}: {why(error)}. Free some space or choose another "
        "--workdir, then run the same command again to resume from the latest checkpoint."
    )
