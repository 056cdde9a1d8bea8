"""Stages whose results are kept in a work directory: skipped, reused, or made again with a reason.

A stage's function takes data and returns data, and knows nothing of files. `StageCache` wraps it:
it saves the result, and loads it wherever it is needed. Each stage leaves `.stages/NAME.json`: the
configuration keys and the digests of the files that it was made from. While these stay the same the
stage is skipped; what another run made from the very same may be reused.
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.workdir import Workdir

T = TypeVar("T")


class Result(Protocol):
    """What a stage's function returns; `str` of it says in a few words what was done."""

    def save(self, root: pathlib.Path) -> None:
        """Writes the stage's outputs under a work directory."""
        ...


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage depends on, and what it leaves in a work directory.

    Attributes:
      keys: parts of the configuration that it depends on.
      outputs: files that it leaves.
      inputs: files that it reads; "{split}" is the split of the evaluation.
      optional: outputs of other stages that it reads where the configuration needs those.
      shown: outputs of other stages that it reads where they are there.
      load: the result, from a work directory; None where nothing is loaded.
      needed: whether the configuration asks for it at all.
      outside: files and directories elsewhere that it reads.
      settings: further keys and values that it depends on.
      training: a stale output may have taken days: it is not overwritten, and it is a run's own.
      partial: what else it leaves, such as what an interrupted run resumes from; removed where that
        was another one's.
      host: work of the host, which one process does for all.
      always: it is never skipped.
    """

    keys: tuple[str, ...]
    outputs: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    load: Callable[[pathlib.Path], Any] | None = None
    needed: Callable[[Any], bool] = lambda config: True
    outside: Callable[[Any], Sequence[str]] = lambda config: ()
    settings: Callable[[Any, Workdir | None], dict[str, Any]] = lambda config, workdir: {}
    training: bool = False
    partial: tuple[str, ...] = ()
    host: bool = False
    always: bool = False


class Processes(Protocol):
    """What is asked of the processes of a job (`kpod_jax.parallel.processes`)."""

    def barrier(self, name: str) -> None:
        """Waits for all of them."""
        ...

    def first_alone(self, work: Callable[[], str]) -> str:
        """Does work in the first one, while the others wait."""
        ...

    def log(self, line: str) -> None:
        """Prints a line once for all."""
        ...


class Lazy:
    """A value that is made when it is first asked for."""

    def __init__(self, make: Callable[[], Any]) -> None:
        """Takes what makes it."""
        self._make = make

    @functools.cached_property
    def value(self) -> Any:
        """The value."""
        return self._make()


def lazily(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """The result of a call that is made when a stage first needs it.

    Arguments that are lazy themselves are given to the function as values. For type checkers the
    result is the value: whoever uses it outside of a stage calls `value_of`.
    """
    return cast(T, Lazy(lambda: _call(function, arguments, options)))


def value_of(value: T) -> T:
    """A value that may be lazy."""
    return cast(T, value.value) if isinstance(value, Lazy) else value


def _call(
    function: Callable[..., Any], arguments: Sequence[Any], options: Mapping[str, Any]
) -> Any:
    return function(*map(value_of, arguments), **{k: value_of(v) for k, v in options.items()})


class StageCache:
    """Runs the stages of a configuration in a work directory."""

    def __init__(
        self,
        stages: Mapping[str, Stage],
        config: Any,
        workdir: Workdir,
        processes: Processes,
        chosen: Sequence[str] = (),
    ) -> None:
        """Runs nothing yet.

        Args:
          stages: in their order.
          config: the configuration.
          workdir: of the run.
          processes: of the job.
          chosen: names of the stages that are to be run; the results of others are loaded.
        """
        self._stages, self._config, self._workdir = stages, config, workdir
        self._processes, self._chosen = processes, chosen
        self.root = workdir.path

    def run(self, name: str, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Runs a stage, if it is chosen and not up to date.

        Args:
          name: of the stage.
          function: that makes its result.
          *arguments: of the function; lazy ones are given as values.
          **options: likewise.

        Returns:
          The result, lazily loaded from the work directory; None where the configuration does not
          need the stage.

        Raises:
          UserError: an input is missing, or a training of another configuration would be lost.
        """
        stage = self._stages[name]
        if name in self._chosen:
            self._run(name, lambda: _call(function, arguments, options))
            # The first process has written what the others read.
            self._processes.barrier(f"{name} ends")
        if stage.load is None or not stage.needed(self._config):
            return cast(T, None)
        return lazily(stage.load, self._workdir.path)

    def up_to_date(self, name: str) -> bool:
        """Whether a stage's outputs are there and were made from this configuration."""
        stage = self._stages[name]
        if not stage.needed(self._config):
            return True
        if not all((self._workdir / file).exists() for file in self._inputs(name)):
            return False
        return self._workdir.done(name, self.fingerprint(name), stage.outputs)

    def _run(self, name: str, make: Callable[[], Result]) -> None:
        stage, workdir, log = self._stages[name], self._workdir, self._processes.log
        if not stage.needed(self._config):
            log(f"{name}: not needed for method {self._config.method}")
            return
        missing = [file for file in self._inputs(name) if not (workdir / file).exists()]
        if missing:
            raise UserError(
                f"--mode={name} reads {workdir / missing[0]}, which is not there. Run the "
                "stages before it first, or --mode=all."
            )
        fingerprint = self.fingerprint(name)
        if not stage.always and workdir.done(name, fingerprint, stage.outputs):
            log(f"{name}: up to date")
            return
        if not stage.always and workdir.reuse(name, fingerprint, stage.outputs):
            log(f"{name}: reused from another run that made it from the same inputs")
            return
        stored = workdir.stored(name)
        if stored is not None and stored != fingerprint:
            why = workdir.difference(name, fingerprint)
            if stage.training and any((workdir / file).exists() for file in stage.outputs):
                raise UserError(
                    f"{workdir.path} holds the {name} stage of another configuration: {why}. "
                    "Nothing was changed. Use the configuration that it was made with, another "
                    f"--workdir, or delete {workdir / stage.outputs[0]} to train anew."
                )
            log(f"{name}: made again: {why}")
        if stored != fingerprint:
            for part in stage.partial:
                files.remove(workdir / part)
        began = time.monotonic(), time.process_time()
        workdir.mark(name, fingerprint, complete=False)
        self._processes.barrier(f"{name} begins")  # No process reads what was removed.

        def work() -> str:
            result = make()
            for note in getattr(result, "notes", ()):
                log(f"{name}: {note}")
            result.save(workdir.path)
            return str(result)

        message = self._processes.first_alone(work) if stage.host else work()
        seconds = time.monotonic() - began[0], time.process_time() - began[1]
        workdir.mark(name, fingerprint, seconds=seconds)
        log(f"{name}: {message} → {', '.join(stage.outputs)} ({seconds[0]:.1f} s)")

    def fingerprint(self, name: str) -> dict[str, Any]:
        """What a stage's output depends on."""
        stage = self._stages[name]
        settings = settings_of(stage, self._config, self._workdir)
        shown = [file for file in stage.shown if (self._workdir / file).exists()]
        inputs = [*self._inputs(name), *shown]
        return self._workdir.fingerprint(settings, inputs, stage.outside(self._config))

    def _inputs(self, name: str) -> list[str]:
        """Files of the work directory that a stage reads."""
        needed = (stage for stage in self._stages.values() if stage.needed(self._config))
        made = {file for stage in needed for file in stage.outputs}
        stage = self._stages[name]
        inputs = [file.format(split=self._config.eval.split) for file in stage.inputs]
        return [*inputs, *(file for file in stage.optional if file in made)]


def settings_of(stage: Stage, config: Any, workdir: Workdir | None = None) -> dict[str, Any]:
    """The configuration's keys and values that a stage depends on, flat."""
    return {
        key: value
        for key, value in _flat(config.to_dict()).items()
        if any(key == part or key.startswith(f"{part}.") for part in stage.keys)
    } | stage.settings(config, workdir)


def _flat(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= (
            _flat(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
        )
    return found


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a stage is made from, as far as a configuration tells before anything is made.

    Attributes:
      settings: the configuration's keys that it depends on.
      before: the recipes of the stages whose files it reads.
    """

    settings: dict[str, Any]
    before: "tuple[Recipe, ...]"


def recipes(stages: Mapping[str, Stage], config: Any) -> dict[str, Recipe]:
    """Recipes of the stages that runs share; where they are equal, so is what two runs make."""
    found: dict[str, Recipe] = {}
    maker: dict[str, str] = {}
    for name, stage in stages.items():
        if stage.training:
            break  # Trainings, and what follows from them, are a run's own.
        if stage.needed(config):
            read = {maker[file] for file in (*stage.inputs, *stage.optional) if file in maker}
            before = tuple(found[other] for other in sorted(read))
            found[name] = Recipe(json.loads(json.dumps(settings_of(stage, config))), before)
            maker |= dict.fromkeys(stage.outputs, name)
    return found
