"""Trackers: where the metrics, the configuration, the results and the report of a run are shown.

`track` of the configuration names them. TensorBoard's events are written by `MetricsWriter` itself;
the others are services or libraries of their own (`tracker_services`), which run in a thread each:
neither a slow network nor a failure of theirs stops a training. A run that is resumed goes on in
the same run of a tracker, whose id is in `trackers.json` of the work directory. Only the first
process tracks.
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
# The package to import, by name; a package is installed by the extra of this name.
PACKAGES = {"wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}
NAMES = (TENSORBOARD, *PACKAGES)
IDS = "trackers.json"
PROJECT = "kpod-jax"
_WAITING = 10_000  # Calls that may wait for a slow tracker; later ones are dropped.
# Time that a tracker has for what is waiting when the run ends, and when it is interrupted.
_SECONDS, _INTERRUPTED_SECONDS = 60.0, 10.0


class Tracker(Protocol):
    """A run of a tracker."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Adds metrics of a step of a stage; a resumed stage may repeat steps."""
        ...

    def results(self, values: Mapping[str, float]) -> None:
        """Sets the run's results."""
        ...

    def artifact(self, path: pathlib.Path) -> None:
        """Adds a file to the run; a later one of the same name replaces it."""
        ...

    def finish(self, succeeded: bool) -> None:
        """Ends the run, until it is resumed."""
        ...


@dataclasses.dataclass(frozen=True)
class Run:
    """What a tracker's run is opened with.

    Attributes:
      name: shown name.
      id: the id in the tracker of the run to resume; "": a new one.
      config: configuration by dotted key, without secrets.
      folder: a local folder for the tracker's own files.
    """

    name: str
    id: str
    config: Mapping[str, Any]
    folder: pathlib.Path


# Opens a run; returns it and its id.
Opener = Callable[[Run], tuple[Tracker, str]]


def require(names: Sequence[str]) -> None:
    """Checks names of trackers and that their packages are installed.

    Raises:
      UserError: a name is unknown or repeated, or a package is missing.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise UserError(f"track={unknown[0]!r}: expected one or more of {', '.join(NAMES)}.")
    if len(set(names)) < len(names):
        raise UserError(f"track={','.join(names)}: expected each tracker once.")
    for name in names:
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(
                f"track={name!r} needs the package {PACKAGES[name]}, which is not installed: pip "
                f"install {PACKAGES[name]}, or the extra [{name}]."
            )


@dataclasses.dataclass(frozen=True)
class Tracking:
    """The trackers of the stages that run now.

    Attributes:
      tensorboard: whether TensorBoard events are written.
      services: the others.
    """

    tensorboard: bool = True
    services: tuple["InThread", ...] = ()


_DEFAULT = Tracking()
_TRACKING = contextvars.ContextVar("tracking", default=_DEFAULT)


def current() -> Tracking:
    """Returns the trackers of the stages that run now; by default TensorBoard."""
    return _TRACKING.get()


@contextlib.contextmanager
def use(tracking: Tracking) -> Iterator[Tracking]:
    """Sets the trackers inside the block."""
    token = _TRACKING.set(tracking)
    try:
        yield tracking
    finally:
        _TRACKING.reset(token)


@contextlib.contextmanager
def tracking(config: Config, root: pathlib.Path) -> Iterator[Tracking]:
    """Tracks the stages inside the block; a tracker's run is opened when there is something to log.

    Args:
      config: the whole configuration; `track` names the trackers.
      root: the work directory.
    """
    names = [name for name in config.track if name in PACKAGES and jax.process_index() == 0]
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
    """Logs the numbers of results.json and the report of a work directory, if they exist."""
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
    """A tracker in a thread of its own, which is ended by its first failure."""

    def __init__(self, name: str, root: pathlib.Path, settings: Mapping[str, Any]) -> None:
        """Initializes the tracker; it is opened by the first call.

        Args:
          name: a key of PACKAGES.
          root: the work directory.
          settings: configuration by dotted key, without secrets.
        """
        self._name, self._root, self._settings = name, root, settings
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(_WAITING)
        self._failed = threading.Event()
        self._thread: threading.Thread | None = None

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Adds metrics; returns at once."""
        self._call(lambda tracker: tracker.log(stage, step, values))

    def results(self, values: Mapping[str, float]) -> None:
        """Sets results; returns at once."""
        self._call(lambda tracker: tracker.results(values))

    def artifact(self, path: pathlib.Path) -> None:
        """Adds a file; returns at once."""

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
        """Ends the run, after waiting for what is left for a limited time."""
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
            self._fail("it does not keep up")

    def _work(self) -> None:
        try:
            tracker = self._open()
            while not self._failed.is_set() and (call := self._calls.get()) is not None:
                call(tracker)
        except BaseException as error:  # Libraries may even exit.
            self._fail(f"{type(error).__name__}: {one_line(error)}")

    def _open(self) -> Tracker:
        from kpod_jax.training import tracker_services  # Imports none of the libraries itself.

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
            processes.log(f"track: {self._name} failed and is left out from here on: {text}")


_IDS_LOCK = threading.Lock()
