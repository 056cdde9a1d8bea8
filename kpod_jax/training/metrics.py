"""Metrics: one line of JSON an event and TensorBoard scalars, fetched one step late.

`metrics.jsonl` of the work directory holds all stages. A stage that goes on from a checkpoint first
cuts away what it wrote after that checkpoint, so that the file reads as one uninterrupted run.

Objects of a bucket cannot be added to. There both are written in a local folder, and sent when a
minute has gone or a checkpoint is to be saved.
"""

import json
import math
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import IO, Any

import jax

from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

# Seconds between two times that the files are sent to a bucket.
_SEND_EVERY = 60.0


class MetricsWriter:
    """Writes the metrics of one stage; in all processes but the first it does nothing."""

    def __init__(
        self, workdir: files.PathLike, stage: str, *, restored_step: int | None = None
    ) -> None:
        """Opens `workdir/metrics.jsonl` and `workdir/tensorboard/STAGE`.

        Args:
          workdir: the run's work directory; made if it is missing.
          stage: "distill", "weigh" and so on.
          restored_step: of the checkpoint from which the stage goes on: what it wrote after that
            step is removed. None removes all that it wrote: it starts anew.

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
        if jax.process_index() != 0:
            return
        import tensorboardX  # It imports PyTorch where that is installed, which takes seconds.

        first_step = 0 if restored_step is None else restored_step + 1
        if restored_step is None:
            files.remove(self._workdir / "tensorboard" / stage)
        _cut(self._path, stage, restored_step)
        folder = self._workdir
        if files.is_remote(self._workdir):
            self._local = tempfile.TemporaryDirectory()
            folder = pathlib.Path(self._local.name)
            if self._path.exists():
                (folder / "metrics.jsonl").write_bytes(self._path.read_bytes())
        try:
            self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
            self._events = tensorboardX.SummaryWriter(
                str(folder / "tensorboard" / stage),
                # TensorBoard hides older events from this step on.
                purge_step=first_step,
                # Names hold the time in seconds: one of a quick restart would be overwritten.
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
          step: of the stage, not falling from call to call.
          values: by name. Numbers go to TensorBoard as well. NaN and infinities are null in
            `metrics.jsonl`, as JSON has no others.

        Raises:
          UserError: the disk is full.
        """
        if self._file is None or self._events is None:
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
            if isinstance(value, float | int):
                self._events.add_scalar(name, value, step)
        if time.monotonic() - self._sent > _SEND_EVERY:
            self.send()

    def send(self) -> None:
        """Sends what was written so far to a bucket; a local folder has it already."""
        if self._local is None or self._events is None:
            return
        self._events.flush()
        files.copy_folder(self._local.name, self._workdir)
        self._sent = time.monotonic()

    def close(self) -> None:
        """Writes what TensorBoard events are left and closes the files."""
        if self._file is not None and self._events is not None:
            self._events.close()
            self._file.close()
            self.send()
        if self._local is not None:
            self._local.cleanup()


class OneStepLate:
    """Holds a step's metrics on the device until the next step was started.

    To read a value of the step that was just started is to wait for it, and the device then waits
    for the host. The values of the step before are ready, or soon are, while the next one runs:

        late = OneStepLate()
        for step in range(steps):
            state, metrics = train_step(state, batch)  # Returns at once.
            if (done := late.push(step, metrics)) is not None:
                write(*done)
        if (done := late.flush()) is not None:
            write(*done)
    """

    def __init__(self) -> None:
        """Holds nothing yet."""
        self._held: tuple[int, Any] | None = None

    def push(self, step: int, metrics: Any) -> tuple[int, Any] | None:
        """Takes the metrics of `step` and gives back those of the step before.

        Args:
          step: whose metrics they are.
          metrics: pytree of scalars on the device, the same on all of them.

        Returns:
          (step, the pytree as Python numbers) of the call before; None at the first call.
        """
        for leaf in jax.tree.leaves(metrics):
            if isinstance(leaf, jax.Array):
                leaf.copy_to_host_async()
        done = self.flush()
        self._held = (step, metrics)
        return done

    def flush(self) -> tuple[int, Any] | None:
        """Waits for the last step: (step, metrics) as from `push`, or None where none is held."""
        if self._held is None:
            return None
        step, metrics = self._held
        self._held = None
        return step, jax.tree.map(lambda leaf: leaf.item(), jax.device_get(metrics))


def _cut(path: pathlib.Path, stage: str, restored_step: int | None) -> None:
    """Removes the lines of a stage after a step, or all of them, and a line that is not whole."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from error
    kept = []
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):  # Killed while it wrote the last line.
            continue
        try:
            row = json.loads(line)
            ours, step = row["stage"] == stage, row["step"]
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}, line {number} is not a line of metrics: expected a JSON object with "
                f'"stage" and "step", got {line[:80]!r}. Remove the line, or the whole file.'
            ) from error
        if not ours or (restored_step is not None and step <= restored_step):
            kept.append(line)
    if kept != lines:
        with files.atomic_write(path) as file:
            file.writelines(kept)
    elif not files.is_remote(path):
        path.parent.mkdir(parents=True, exist_ok=True)


def _cannot_write(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"Cannot write {path}: {error.strerror or error}. Free some space or choose another "
        "--workdir, then run the same command again: it goes on from the latest checkpoint."
    )
