"""--mode=sweep: runs, each in a process of its own, and their comparison.

On several hosts, all of which are given the command, each run is made by all of them together. Runs
share what they make from the same inputs: the records, weights and difficulties of one are
reused by the next. Of runs at work at the same time one makes what they share, and the others
start once it is there. A run that is done is not done again; one that fails stops no other.
"""

import contextlib
import fcntl
import functools
import importlib.util
import pathlib
import signal
import sys
import time
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import jax

from kpod_jax import pipeline, report
from kpod_jax.cli import checks
from kpod_jax.config.defaults import Config
from kpod_jax.parallel import processes
from kpod_jax.sweep import comparison, workers
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.workdir import Workdir

_FAILURE = "failure.json"
_LONGEST = 1000  # Characters of a reason; what a runtime says of its memory goes on for pages.


def run(
    sweep: str,
    workdir: files.PathLike,
    *,
    parallel: int = 1,
    command: Callable[[str], Sequence[str]] | None = None,
) -> dict[str, str]:
    """Makes all runs of a sweep that are not done, then their comparison.

    Writes `comparison.json`, `comparison.md`, `comparison.tex` and `report.html`.

    Args:
      sweep: a Python file with `get_runs(argument)`, which returns configurations by name; an
        argument may follow after a colon, as in `configs/sweeps/quickstart.py:short`.
      workdir: each run's directory is made in it under the run's name.
      parallel: runs at work at the same time. With one, its lines are shown here; of several, they
        are in `NAME/log.txt`, in a directory of this machine.
      command: of the process that makes a run, by the run's name; None: this program.

    Returns:
      The runs that failed, by name, each with its reason.

    Raises:
      UserError: the sweep cannot be loaded, a configuration is not sound, or another sweep is at
        work in the directory.
    """
    root = files.as_path(workdir)
    runs = _load(sweep)
    if parallel < 1:
        raise UserError(f"--parallel={parallel}: expected at least 1.")
    if parallel > 1 and files.is_remote(root):
        raise UserError(
            f"--parallel={parallel} with --workdir={root}: each run's output is added to a file, "
            "which a bucket has none of. Expected 1, or a directory of this machine, to be copied "
            "to the bucket when all is done."
        )
    if jax.distributed.is_initialized():
        return _run_together(sweep, runs, root)
    with _alone(root):
        recipes = {name: pipeline.recipes(config) for name, config in runs.items()}
        done = [name for name, config in runs.items() if _done(config, root / name)]
        waiting = [name for name in runs if name not in done]
        if done:
            print(f"{len(done)} of {len(runs)} runs are done: {', '.join(done)}", flush=True)
        for name in waiting:
            files.remove(root / name / _FAILURE)
        codes = workers.work_off(
            waiting,
            command or functools.partial(_command, sweep, root),
            parallel=parallel,
            log=lambda name: None if parallel == 1 else root / name / "log.txt",
            ready=functools.partial(_ready, recipes, root),
            tell=_Teller(root, len(done), len(runs), show_stages=parallel > 1),
        )
        failed = {name: _reason(root / name, code) for name, code in codes.items() if code}
        finished = {name: config for name, config in runs.items() if name not in failed}
        if finished:
            _compare(sweep, finished, failed, root)
    return failed


def _run_together(sweep: str, runs: Mapping[str, Config], root: pathlib.Path) -> dict[str, str]:
    """As `run`, in these processes, which make each run together.

    A run that fails ends the sweep, as the processes no longer stand at the same place; of a single
    process it stops no other.
    """
    failed = {}
    with _answering_for(root):
        # All must come to the same before any changes it.
        waiting = [name for name, config in runs.items() if not _done(config, root / name)]
        processes.barrier("the sweep begins")
        for name in waiting:
            files.remove(root / name / _FAILURE)
            try:
                _make(runs, root, name)
            except Exception as error:
                if jax.process_count() > 1:
                    raise
                failed[name] = _told(error)
        finished = {name: config for name, config in runs.items() if name not in failed}
        if finished:
            processes.first_alone(lambda: _compare(sweep, finished, failed, root))
    return failed


def make(sweep: str, workdir: files.PathLike, names: Sequence[str]) -> None:
    """Makes some runs of a sweep in this process, and compares nothing.

    Args:
      sweep: as for `run`.
      workdir: likewise.
      names: of the runs.

    Raises:
      UserError: there is no such run, another process is at work on it, or it has something that
        the user can put right.
    """
    root, runs = files.as_path(workdir), _load(sweep)
    if unknown := [name for name in names if name not in runs]:
        raise UserError(
            f"--runs={unknown[0]}: the sweep has no such run; it has {', '.join(runs)}."
        )
    for name in names:
        with _answering_for(root / name):
            _make(runs, root, name)


def _make(runs: Mapping[str, Config], root: pathlib.Path, name: str) -> None:
    """Makes a run in this process; the reason of a failure is left beside it."""
    try:
        pipeline.run(runs[name], root / name, siblings=[root / other for other in runs])
    except Exception as error:
        with contextlib.suppress(UserError):  # The disk may be what failed.
            files.write_json(root / name / _FAILURE, {"reason": _told(error)})
        raise


def _told(error: Exception) -> str:
    what = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{what}{error}"[:_LONGEST]


def _compare(
    sweep: str, runs: Mapping[str, Config], failed: Mapping[str, str], root: pathlib.Path
) -> str:
    """Writes the comparison, and returns its path."""
    result = comparison.compare(sweep, runs, root, failed)
    files.write_json(root / "comparison.json", result)
    files.write_text(root / "comparison.md", report.sweep_text.markdown(result))
    files.write_text(root / "comparison.tex", report.sweep_text.latex(result))
    page = report.write_sweep(root, result)
    print(f"\n{report.sweep_text.plain(result)}\n\nReport: {page}", flush=True)
    return str(page)


def _command(sweep: str, root: pathlib.Path, name: str) -> list[str]:
    program = [sys.executable, "-m", "kpod_jax.main", "--mode=sweep", "--coordinator=off"]
    return [*program, f"--sweep={sweep}", f"--workdir={root}", f"--runs={name}"]


def _ready(
    recipes: Mapping[str, Mapping[str, pipeline.Recipe]],
    root: pathlib.Path,
    name: str,
    at_work: Collection[str],
) -> bool:
    """Whether no run that is at work has yet to make a stage that this one would make as well."""

    def made(stage: str, recipe: pipeline.Recipe) -> bool:
        same = (other for other in recipes if recipes[other].get(stage) == recipe)
        return any(_made(root / other, stage, recipe.settings) for other in same)

    return all(
        recipes[name].get(stage) != recipe or made(stage, recipe)
        for other in at_work
        for stage, recipe in recipes[other].items()
    )


def _done(config: Config, path: pathlib.Path) -> bool:
    try:
        return pipeline.up_to_date(config, path)
    except UserError:  # A damaged file: the run itself says so, and stops no other.
        return False


def _made(path: pathlib.Path, stage: str, settings: Mapping[str, object]) -> bool:
    """Whether a run has made a stage with these settings."""
    try:
        note = Workdir.note(path, stage)
    except UserError:  # Damaged: the run itself says so.
        return False
    if note is None or not note["complete"]:
        return False
    return all(note["fingerprint"].get(key) == value for key, value in settings.items())


class _Teller:
    """Says which run begins, which stage it is at, how it ended and how many are left."""

    def __init__(self, root: pathlib.Path, done: int, total: int, *, show_stages: bool) -> None:
        self._root, self._done, self._total = root, done, total
        self._show_stages = show_stages
        self._stages: dict[str, str] = {}
        self._began: dict[str, float] = {}

    def __call__(self, at_work: Collection[str], ended: Mapping[str, int]) -> None:
        for name, code in ended.items():
            self._done += 1
            took = time.monotonic() - self._began.pop(name)
            how = f"failed: {_reason(self._root / name, code)}" if code else "done"
            self._say(f"{name}: {how} ({took:.0f} s)")
        for name in at_work:
            if name not in self._began:
                self._began[name] = time.monotonic()
                self._say(name)
            elif self._show_stages:
                stage = None
                with contextlib.suppress(UserError):
                    stage = Workdir.running_stage(self._root / name)
                if stage and self._stages.get(name) != stage:
                    self._stages[name] = stage
                    self._say(f"{name}: {stage}")

    def _say(self, line: str) -> None:
        print(f"[{self._done} of {self._total} done] {line}", flush=True)


def _reason(path: pathlib.Path, code: int) -> str:
    """Why a run failed: what it said itself, or else how its process ended."""
    with contextlib.suppress(UserError, KeyError, TypeError):
        return str(files.read_json(path / _FAILURE)["reason"])
    if code < 0:
        full = "; the machine's memory may have been full" if -code == signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{full}"
    return f"its process ended with code {code}"


def _answering_for(path: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """`_alone` in the first of several processes that work together."""
    return contextlib.nullcontext() if jax.process_index() else _alone(path)


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[None]:
    """Holds a directory against other processes; the system lets go when the process ends.

    Not of a bucket, which has no locks.
    """
    path = Workdir(path).path
    if files.is_remote(path):
        yield
        return
    with (path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"Another process is at work in {path}. Wait for it, or choose another --workdir."
            ) from error
        yield


def _load(sweep: str) -> dict[str, Config]:
    """The sweep's configurations by name, all of them checked."""
    path, _, argument = files.config_file(sweep).partition(":")
    runs = _module(path).get_runs(argument)
    for name, config in runs.items():
        if not name or pathlib.PurePath(name).name != name:
            raise UserError(f"--sweep={path}: run {name!r}: expected a name for a directory.")
        try:
            checks.check(config)
        except UserError as error:
            raise UserError(f"Run {name}: {error}") from error
    if not runs:
        raise UserError(f"--sweep={sweep} has no runs.")
    return runs


def _module(path: str) -> types.ModuleType:
    specification = importlib.util.spec_from_file_location("kpod_sweep", path)
    if specification is None or specification.loader is None or not pathlib.Path(path).is_file():
        raise UserError(f"--sweep={path}: no such Python file.")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    if not hasattr(module, "get_runs"):
        raise UserError(f"--sweep={path} has no function get_runs(argument).")
    return module
