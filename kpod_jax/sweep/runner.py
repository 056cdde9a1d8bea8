"""--mode=sweep: executes runs, each in a separate process, and compares them.

On several hosts, which all get the same command, each run uses all of them. Runs share outputs of
the same inputs: records, weights and difficulties of one run are reused by the next. Of concurrent
runs, one computes what they share and the others start once it exists. Completed runs are skipped;
a failed run does not stop the others.
"""

import contextlib
import functools
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import jax

from kpod_jax import pipeline, report
from kpod_jax.cli import checks, terminal
from kpod_jax.config.defaults import Config
from kpod_jax.config.loading import check_tree
from kpod_jax.parallel import processes
from kpod_jax.sweep import comparison, workers
from kpod_jax.utils import files, locks, plugins
from kpod_jax.utils.errors import LockedError, UserError, one_of
from kpod_jax.utils.printable import message, printable
from kpod_jax.utils.workdir import Workdir

_FAILURE = "failure.json"
_MAX_REASON = 1000  # Characters; a runtime's report of its memory runs to pages.


def main(sweep: str, workdir: files.PathLike, names: Sequence[str] = (), parallel: int = 1) -> bool:
    """Executes a sweep, or only the named runs in this process, and reports failures.

    Args:
      sweep: see `run`.
      workdir: see `run`.
      names: runs to execute here without a comparison; empty: all runs, with a comparison.
      parallel: see `run`.

    Returns:
      Whether all runs succeeded.
    """
    if names:
        make(sweep, workdir, names)
        return True
    failed = run(sweep, workdir, parallel=parallel)
    if failed:
        lines = [f"  {name}: {message(reason)}" for name, reason in failed.items()]
        print("\nFailed runs:", *lines, sep="\n", file=sys.stderr)
    return not failed


def run(
    sweep: str,
    workdir: files.PathLike,
    *,
    parallel: int = 1,
    command: Callable[[str], Sequence[str]] | None = None,
) -> dict[str, str]:
    """Executes all runs of a sweep that are not complete, then compares them.

    Writes `comparison.json`, `comparison.md`, `comparison.tex` and `report.html`.

    Args:
      sweep: a Python file with `get_runs(argument)`, which returns configurations by name; an
        argument may follow after a colon, as in `configs/sweeps/quickstart.py:short`.
      workdir: parent of the runs' directories, which are named after the runs.
      parallel: number of concurrent runs. The output of a single one is shown here; that of
        several goes to `NAME/log.txt`, in a local directory.
      command: returns the command that executes a run, given its name; None: this program.

    Returns:
      The reasons of the failed runs, by name.

    Raises:
      UserError: the sweep cannot be loaded, a configuration is invalid, or another sweep is running
        in the directory.
    """
    root = files.as_path(workdir)
    runs = _load(sweep)
    if parallel < 1:
        raise UserError(f"--parallel={parallel}: expected at least 1.")
    if parallel > 1 and files.is_remote(root):
        raise UserError(
            f"--parallel={parallel} with --workdir={root}: the output of each run is appended to a "
            "file, which buckets do not support. Use --parallel=1, or a local directory and copy "
            "it to the bucket afterwards."
        )
    if jax.distributed.is_initialized():
        return _run_together(sweep, runs, root)
    with locks.locked(Workdir(root).path) as note:
        if note:
            print(message(note), flush=True)
        recipes = {name: pipeline.recipes(config) for name, config in runs.items()}
        done = [name for name, config in runs.items() if _is_done(config, root / name)]
        waiting = [name for name in runs if name not in done]
        if done:
            print(f"{len(done)} of {len(runs)} runs are done: {', '.join(done)}", flush=True)
        for name in waiting:
            files.remove(root / name / _FAILURE)
        codes = workers.run_jobs(
            waiting,
            command or functools.partial(_command, sweep, root),
            parallel=parallel,
            log=lambda name: None if parallel == 1 else root / name / "log.txt",
            ready=functools.partial(_is_ready, recipes, root),
            tell=_Reporter(root, len(done), len(runs), show_stages=parallel > 1),
        )
        failed = {name: _reason(root / name, code) for name, code in codes.items() if code}
        finished = {name: config for name, config in runs.items() if name not in failed}
        if finished:
            _compare(sweep, finished, failed, root)
    return failed


def _run_together(sweep: str, runs: Mapping[str, Config], root: pathlib.Path) -> dict[str, str]:
    """Does what `run` does in these processes, which execute each run together.

    A failed run ends the sweep, because the processes are no longer in step; with a single process
    the other runs continue.
    """
    failed = {}
    with processes.locked(Workdir(root).path):
        # All processes must see the same state before any of them changes it.
        waiting = [name for name, config in runs.items() if not _is_done(config, root / name)]
        processes.barrier("the sweep begins")
        for name in waiting:
            files.remove(root / name / _FAILURE)
            try:
                _make(runs, root, name)
            except Exception as error:
                if jax.process_count() > 1:
                    raise
                failed[name] = _reason_of(error)
        finished = {name: config for name, config in runs.items() if name not in failed}
        if finished:
            processes.run_on_first(lambda: _compare(sweep, finished, failed, root))
    return failed


def make(sweep: str, workdir: files.PathLike, names: Sequence[str]) -> None:
    """Executes some runs of a sweep in this process, without comparing them.

    Args:
      sweep: as for `run`.
      workdir: as for `run`.
      names: names of the runs.

    Raises:
      UserError: there is no such run, another process is running it, or it failed with a problem
        that the user can fix.
    """
    root, runs = files.as_path(workdir), _load(sweep)
    if unknown := [name for name in names if name not in runs]:
        raise UserError(
            f"--runs={unknown[0]}: no such run in the sweep; {one_of(unknown[0], runs)}."
        )
    for name in names:
        _make(runs, root, name)


def _make(runs: Mapping[str, Config], root: pathlib.Path, name: str) -> None:
    """Executes a run in this process; on failure, writes the reason into its directory."""
    try:
        pipeline.run(runs[name], root / name, siblings=[root / other for other in runs])
    except LockedError:  # The directory belongs to the run that holds the lock.
        raise
    except Exception as error:
        with contextlib.suppress(UserError):  # The failure may be the disk's.
            files.write_json(root / name / _FAILURE, {"reason": _reason_of(error)})
        raise


def _reason_of(error: Exception) -> str:
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{kind}{error}"[:_MAX_REASON]


def _compare(
    sweep: str, runs: Mapping[str, Config], failed: Mapping[str, str], root: pathlib.Path
) -> str:
    """Writes the comparison and returns the path of its page."""
    result = comparison.compare(sweep, runs, root, failed)
    files.write_json(root / "comparison.json", result)
    files.write_text(root / "comparison.md", report.sweep_text.markdown(result))
    files.write_text(root / "comparison.tex", report.sweep_text.latex(result))
    page = report.write_sweep(root, result)
    following = "\n".join(map(printable, terminal.next_commands(root / result["shown"])))
    print(f"\n{report.sweep_text.plain(result)}\n\nReport: {page}\n{following}", flush=True)
    return str(page)


def _command(sweep: str, root: pathlib.Path, name: str) -> list[str]:
    program = [sys.executable, "-m", "kpod_jax.main", "--mode=sweep", "--coordinator=off"]
    return [*program, f"--sweep={sweep}", f"--workdir={root}", f"--runs={name}"]


def _is_ready(
    recipes: Mapping[str, Mapping[str, pipeline.Recipe]],
    root: pathlib.Path,
    name: str,
    running: Collection[str],
) -> bool:
    """Returns whether no running run has yet to complete a stage that this run shares."""

    def is_complete(stage: str, recipe: pipeline.Recipe) -> bool:
        same = (other for other in recipes if recipes[other].get(stage) == recipe)
        return any(_is_stage_done(root / other, stage, recipe.settings) for other in same)

    return all(
        recipes[name].get(stage) != recipe or is_complete(stage, recipe)
        for other in running
        for stage, recipe in recipes[other].items()
    )


def _is_done(config: Config, path: pathlib.Path) -> bool:
    try:
        return pipeline.up_to_date(config, path)
    except UserError:  # A damaged file, which the run itself will report.
        return False


def _is_stage_done(path: pathlib.Path, stage: str, settings: Mapping[str, object]) -> bool:
    """Returns whether a run has completed a stage with these settings."""
    try:
        note = Workdir.note(path, stage)
    except UserError:  # Damaged, which the run itself will report.
        return False
    if note is None or not note["complete"]:
        return False
    return all(note["fingerprint"].get(key) == value for key, value in settings.items())


class _Reporter:
    """Prints which runs start, their stages, how they ended and how many are done."""

    def __init__(self, root: pathlib.Path, done: int, total: int, *, show_stages: bool) -> None:
        self._root, self._done, self._total = root, done, total
        self._show_stages = show_stages
        self._stages: dict[str, str] = {}
        self._start_times: dict[str, float] = {}

    def __call__(self, running: Collection[str], ended: Mapping[str, int]) -> None:
        for name, code in ended.items():
            self._done += 1
            seconds = time.monotonic() - self._start_times.pop(name)
            outcome = f"failed: {_reason(self._root / name, code)}" if code else "done"
            self._print(f"{name}: {outcome} ({seconds:.0f} s)")
        for name in running:
            if name not in self._start_times:
                self._start_times[name] = time.monotonic()
                self._print(name)
            elif self._show_stages:
                stage = None
                with contextlib.suppress(UserError):
                    stage = Workdir.running_stage(self._root / name)
                if stage and self._stages.get(name) != stage:
                    self._stages[name] = stage
                    self._print(f"{name}: {stage}")

    def _print(self, line: str) -> None:
        print(f"[{self._done} of {self._total} done] {message(line)}", flush=True)


def _reason(path: pathlib.Path, code: int) -> str:
    """Returns why a run failed: the reason it left, else how its process ended."""
    with contextlib.suppress(UserError, KeyError, TypeError):
        return str(files.read_json(path / _FAILURE)["reason"])
    if code < 0:
        hint = "; the machine may have run out of memory" if -code == signal.SIGKILL else ""
        return f"its process was killed by {signal.Signals(-code).name}{hint}"
    return f"its process exited with code {code}"


def _load(sweep: str) -> dict[str, Config]:
    """Returns the sweep's configurations by name, all of them checked."""
    path, _, argument = sweep.partition(":")
    module = plugins.load_file(path, "--sweep", "get_runs")
    with plugins.reporting_errors(f"--sweep={path}", path):
        runs = dict(module.get_runs(argument))
    for name, config in runs.items():
        check_tree(config, f"--sweep={path}: the run {name!r}")
        if not name or pathlib.PurePath(name).name != name:
            raise UserError(
                f"--sweep={path}: expected run names that can name directories, got {name!r}."
            )
        try:
            checks.check(config)
        except UserError as error:
            raise UserError(f"Run {name}: {error}") from error
    if not runs:
        raise UserError(f"--sweep={sweep} has no runs.")
    return runs
