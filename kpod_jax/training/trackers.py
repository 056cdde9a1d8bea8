"""Experiment trackers, which show a run's metrics, configuration, results and report.

`track` of the configuration names them. `MetricsWriter` writes TensorBoard events itself. Each of
the other trackers (`tracker_services`) runs in its own thread, so neither a slow network nor an
error of a tracker stops a training. A resumed run continues the same run of each tracker, whose id
is kept in `trackers.json` of the work directory. Only the first process tracks.
"""

import contextlib
import contextvars
import dataclasses
import importlib.util
import math
import pathlib
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax

from kpod_jax.config.defaults import Config
from kpod_jax.parallel import processes
from kpod_jax.utils import config_dict, files, redaction
from kpod_jax.utils.errors import UserError, one_line

TENSORBOARD = "tensorboard"
SERVICES = ("wandb", "trackio", "mlflow")  # Also the names of their packages and our extras.
NAMES = (TENSORBOARD, *SERVICES)
IDS = "trackers.json"
PROJECT = "kpod-jax"
_MAX_PENDING = 10_000  # A tracker with more pending calls is too slow and is dropped.
# How long to wait for pending calls when a run ends, and when it fails or is interrupted.
_SECONDS, _INTERRUPTED_SECONDS = 60.0, 10.0


class Tracker(Protocol):
    """An open run of a tracker."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Logs metrics of a step of a stage; a resumed stage may repeat steps."""
        ...

    def results(self, values: Mapping[str, float]) -> None:
        """Logs the run's results."""
        ...

    def artifact(self, path: pathlib.Path) -> None:
        """Uploads a local file, as a new version if there is one of this name."""
        ...

    def finish(self, succeeded: bool) -> None:
        """Closes the run."""
        ...


@dataclasses.dataclass(frozen=True)
class Run:
    """The arguments that open a run of a tracker.

    Attributes:
      name: display name.
      id: the tracker's id of the run to resume; "": start a new one.
      config: configuration by dotted key, without secrets.
      folder: local folder for the tracker's own files.
    """

    name: str
    id: str
    config: Mapping[str, Any]
    folder: pathlib.Path


# Opens a run and returns it with its id.
Opener = Callable[[Run], tuple[Tracker, str]]


def require(names: Sequence[str]) -> None:
    """Checks that trackers are known and installed.

    Raises:
      UserError: a name is unknown or repeated, or a package is missing.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise UserError(f"track={unknown[0]!r}: expected one or more of {', '.join(NAMES)}.")
    if len(set(names)) < len(names):
        raise UserError(f"track={','.join(names)}: expected each tracker once.")
    for name in names:
        if name in SERVICES and importlib.util.find_spec(name) is None:
            raise UserError(
                f"track={name!r} needs the package {name}, which is not installed. Run "
                f"`pip install {name}`, or install the extra [{name}]."
            )


@dataclasses.dataclass(frozen=True)
class Tracking:
    """The trackers in use.

    Attributes:
      tensorboard: whether to write TensorBoard events.
      services: the other trackers.
    """

    tensorboard: bool = True
    services: tuple["InThread", ...] = ()


_TRACKING = contextvars.ContextVar("tracking", default=Tracking())  # noqa: B039 - frozen


def current() -> Tracking:
    """Returns the trackers in use; by default TensorBoard alone."""
    return _TRACKING.get()


@contextlib.contextmanager
def use(tracking: Tracking) -> Iterator[Tracking]:
    """Uses these trackers inside the block."""
    token = _TRACKING.set(tracking)
    try:
        yield tracking
    finally:
        _TRACKING.reset(token)


@contextlib.contextmanager
def tracking(config: Config, root: pathlib.Path) -> Iterator[Tracking]:
    """Tracks the stages inside the block; the first call to a tracker opens its run.

    Args:
      config: the whole configuration; `track` names the trackers.
      root: the work directory.
    """
    names = [name for name in config.track if name in SERVICES and jax.process_index() == 0]
    settings = redaction.redact(config_dict.flatten(config))
    services = tuple(InThread(name, root, settings) for name in names)
    succeeded = False
    try:
        with use(Tracking(TENSORBOARD in config.track, services)) as made:
            yield made
        succeeded = True
    finally:
        for service in services:
            service.finish(succeeded)


def log_results(root: pathlib.Path) -> None:
    """Logs the numbers in results.json and uploads report.html, if they exist."""
    services = current().services
    if services and (root / "results.json").exists():
        results = files.read_json(root / "results.json")
        values = {f"eval/{key}": value for key, value in numbers(results).items()}
        for service in services:
            service.results(values)
    if services and (root / "report.html").exists():
        for service in services:
            service.artifact(root / "report.html")


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the finite numbers among some values."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


class InThread:
    """A tracker in its own thread. Its first error is reported, and ends it.

    All methods return at once, except `finish`.
    """

    def __init__(self, name: str, root: pathlib.Path, settings: Mapping[str, Any]) -> None:
        """Prepares the tracker; its first call opens the run.

        Args:
          name: one of SERVICES.
          root: the work directory.
          settings: configuration by dotted key, without secrets.
        """
        self._name, self._root, self._settings = name, root, settings
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(_MAX_PENDING)
        self._failed = threading.Event()
        self._thread: threading.Thread | None = None

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._call(lambda tracker: tracker.log(stage, step, values))

    def results(self, values: Mapping[str, float]) -> None:
        """See `Tracker.results`."""
        self._call(lambda tracker: tracker.results(values))

    def artifact(self, path: pathlib.Path) -> None:
        """See `Tracker.artifact`; the file may also be in a bucket."""

        def add(tracker: Tracker) -> None:
            if not files.is_remote(path):
                tracker.artifact(path)
                return
            with tempfile.TemporaryDirectory() as folder:
                local = pathlib.Path(folder) / path.name
                local.write_bytes(path.read_bytes())
                tracker.artifact(local)

        self._call(add)

    def finish(self, succeeded: bool) -> None:
        """Closes the run; waits a limited time for pending calls."""
        if self._thread is None:
            return
        self._call(lambda tracker: tracker.finish(succeeded))
        self._call(None)
        if not self._failed.is_set():
            self._thread.join(_SECONDS if succeeded else _INTERRUPTED_SECONDS)
        if self._thread.is_alive():
            self._fail("it did not finish in time")

    def _call(self, call: Callable[[Tracker], None] | None) -> None:
        if self._failed.is_set():
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._fail("it is too slow")

    def _work(self) -> None:
        try:
            tracker = self._open()
            while not self._failed.is_set() and (call := self._calls.get()) is not None:
                call(tracker)
        except BaseException as error:  # A library may even raise SystemExit.
            self._fail(f"{type(error).__name__}: {one_line(error)}")

    def _open(self) -> Tracker:
        from kpod_jax.training import tracker_services  # It imports this module.

        path = self._root / IDS
        ids = files.read_json(path) if path.exists() else {}
        folder = pathlib.Path.cwd() if files.is_remote(self._root) else self._root
        run = Run(self._root.name, ids.get(self._name, ""), self._settings, folder)
        tracker, run_id = tracker_services.OPENERS[self._name](run)
        if ids.get(self._name) != run_id:
            with _IDS_LOCK:
                ids = files.read_json(path) if path.exists() else {}
                files.write_json(path, ids | {self._name: run_id})
        return tracker

    def _fail(self, reason: str) -> None:
        if not self._failed.is_set():
            self._failed.set()
            text = redaction.redact(" ".join(reason.split()))[:200]
            processes.log(f"track: {self._name} failed and is no longer used: {text}")


_IDS_LOCK = threading.Lock()
