"""Caches the results of stages in a work directory, to skip, reuse or rerun each stage.

A stage's function takes and returns data without accessing files. `StageCache` saves the result and
loads it where needed. Each stage writes `.stages/NAME.json`, with the configuration keys and file
digests that it depends on. A stage is skipped while these stay the same, and another run's outputs
with the same fingerprint may be reused. The file also has the digests of the outputs: they are
verified once per process, before a stage reads or overwrites them.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

from kpod_jax.utils import config_dict, files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.workdir import Workdir, check_unchanged, differing, recorded, same

T = TypeVar("T")
_SHOWN_OUTPUTS = 3  # Files of a stage in its last line.


class Result(Protocol):
    """The result of a stage's function; its `str` summarizes what was done."""

    def save(self, root: pathlib.Path) -> None:
        """Writes the stage's outputs to a work directory."""
        ...


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage's dependencies and outputs.

    Attributes:
      keys: configuration keys or sections that it depends on.
      outputs: files that it writes to the work directory; "{split}" is the evaluation split.
      also: patterns of other files that it writes; their digests are recorded like those of the
        outputs.
      inputs: files that it reads from the work directory; "{split}" is the evaluation split.
      inputs_if_needed: outputs of stages that it reads if the configuration needs those stages.
      inputs_if_present: outputs of other stages that it reads if they exist.
      reads: returns the stages of which it reads other files, such as checkpoints.
      load: loads the result from a work directory; None: there is nothing to load.
      needed: returns whether the configuration needs the stage.
      external: returns the files and directories that it reads outside the work directory.
      settings: returns additional keys and values that it depends on.
      remedy: returns what to do about missing files that running it does not make again; "": none.
      training: whether it trains a model. Stale outputs, which may have taken days, are not
        overwritten, and outputs are not shared between runs.
      partial: other files that it writes, such as those from which an interrupted run resumes;
        removed if they have another fingerprint.
      host: whether it runs on the host, in one process for all.
      always: whether it is never skipped; it may read the files of all stages before it.
      about: what it does, as the user reads when it begins, such as "training the student".
    """

    keys: tuple[str, ...]
    outputs: tuple[str, ...]
    also: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    inputs_if_needed: tuple[str, ...] = ()
    inputs_if_present: tuple[str, ...] = ()
    reads: Callable[[Any], Sequence[str]] = lambda config: ()
    load: Callable[[pathlib.Path], Any] | None = None
    needed: Callable[[Any], bool] = lambda config: True
    external: Callable[[Any], Sequence[str]] = lambda config: ()
    settings: Callable[[Any, Workdir | None], dict[str, Any]] = lambda config, workdir: {}
    remedy: Callable[[pathlib.Path, Sequence[str]], str] = lambda root, missing: ""
    training: bool = False
    partial: tuple[str, ...] = ()
    host: bool = False
    always: bool = False
    about: str = ""


class Processes(Protocol):
    """Interface to a job's processes (`kpod_jax.parallel.processes`)."""

    def barrier(self, name: str) -> None:
        """Waits for all processes."""
        ...

    def run_on_first(self, work: Callable[[], str]) -> str:
        """Runs `work` in the first process while the others wait."""
        ...

    def log(self, line: str) -> None:
        """Prints a line, in the first process only."""
        ...


class Lazy:
    """A value that is computed on first access."""

    def __init__(self, make: Callable[[], Any]) -> None:
        """Stores the function that computes the value."""
        self._make = make

    @functools.cached_property
    def value(self) -> Any:
        """The value."""
        return self._make()


def lazily(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Returns the result of a call, deferred until a stage needs it.

    The function receives the values of lazy arguments. For type checkers the result is the value
    itself; outside of a stage, call `value_of` to get it.
    """
    return cast(T, Lazy(lambda: _call(function, arguments, options)))


def value_of(value: T) -> T:
    """Returns a value, computing it if it is lazy."""
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
        introduction: str = "",
    ) -> None:
        """Initializes the cache without running any stage.

        Args:
          stages: stages by name, in order.
          config: the run's configuration.
          workdir: the run's work directory.
          processes: the job's processes.
          chosen: names of the stages to run; results of the others are loaded.
          introduction: what is printed before the first stage that does something; may be lazy.
        """
        self._stages, self._config, self._workdir = stages, config, workdir
        self._processes, self._chosen, self._introduction = processes, chosen, introduction
        self.root = workdir.path
        self._verified: set[str] = set()

    def run(self, name: str, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Runs a stage if it is chosen and not up to date.

        Args:
          name: name of the stage.
          function: computes its result.
          *arguments: positional arguments of the function; lazy ones are evaluated.
          **options: keyword arguments of the function; lazy ones are evaluated.

        Returns:
          The result, lazily loaded from the work directory; None if the stage has nothing to load
          or the configuration does not need it.

        Raises:
          UserError: an input is missing, a file was changed since its stage made it, or a training
            with another configuration would be overwritten.
        """
        stage = self._stages[name]
        if name in self._chosen:
            self._run(name, lambda: _call(function, arguments, options))
            # Wait until the first process has written what the others read.
            self._processes.barrier(f"{name} ends")
        if stage.load is None or not stage.needed(self._config):
            return cast(T, None)
        return lazily(stage.load, self._workdir.path)

    def up_to_date(self, name: str) -> bool:
        """Returns whether a stage's outputs exist and match this configuration."""
        stage = self._stages[name]
        if not stage.needed(self._config):
            return True
        if not all((self._workdir / file).exists() for file in self._inputs(name)):
            return False
        check_unchanged(self.root, name)
        return self._workdir.done(name, self.fingerprint(name), self._outputs(name))

    def _run(self, name: str, make: Callable[[], Result]) -> None:
        stage, workdir, log = self._stages[name], self._workdir, self._processes.log
        if not stage.needed(self._config):
            log(f"{name}: not needed with this configuration")
            return
        missing = [file for file in self._inputs(name) if not (workdir / file).exists()]
        if missing:
            raise UserError(
                f"--mode={name} reads {workdir / missing[0]}, which does not exist. Run the "
                "earlier stages first, or use --mode=all."
            )
        self._verify(name)
        fingerprint, outputs = self.fingerprint(name), self._outputs(name)
        if not stage.always and workdir.done(name, fingerprint, outputs):
            log(f"{name}: up to date")
            return
        if not stage.always and (reused := workdir.reuse(name, fingerprint, outputs)):
            log(f"{name}: {reused}")
            return
        stored = workdir.stored(name)
        if stored is not None and not same(stored, fingerprint):
            reason = workdir.difference(name, fingerprint)
            if stage.training and any((workdir / file).exists() for file in outputs):
                raise UserError(
                    f"{workdir.path} contains the {name} stage of another configuration: {reason}. "
                    f"Nothing was changed. {self._undamaged(stored, fingerprint)}Use the original "
                    "configuration or another --workdir, or delete "
                    f"{workdir / outputs[0]} to train from scratch."
                )
            log(f"{name}: rerunning: {reason}")
        elif not stage.always and (lost := workdir.missing(name)):
            if remedy := stage.remedy(self.root, lost):
                raise UserError(f"{self._is_missing(lost[0], name)} {remedy}")
            log(f"{name}: rerunning: {workdir / lost[0]} is missing")
        if not same(stored, fingerprint):
            for part in stage.partial:
                files.remove(workdir / part)
        start, cpu_start = time.monotonic(), time.process_time()
        workdir.mark(name, fingerprint, complete=False)
        if not stage.always and self._introduction:
            log(value_of(self._introduction))
            self._introduction = ""
        log(f"{name}: {stage.about} …")
        self._processes.barrier(f"{name} begins")  # Processes wait until stale files are removed.

        def work() -> str:
            result = make()
            for note in getattr(result, "notes", ()):
                log(f"{name}: {note}")
            result.save(workdir.path)
            return str(result)

        message = self._processes.run_on_first(work) if stage.host else work()
        seconds = time.monotonic() - start, time.process_time() - cpu_start
        workdir.mark(name, fingerprint, written=self._written(name), seconds=seconds)
        more = len(outputs) - _SHOWN_OUTPUTS
        shown = ", ".join(outputs[:_SHOWN_OUTPUTS]) + (f" and {more} more" if more > 0 else "")
        log(f"{name}: {message} → {shown} ({seconds[0]:.1f} s)")

    def _verify(self, name: str) -> None:
        """Raises a `UserError` if files were changed that a stage reads or that it overwrites.

        Of the stages in `reads`, no file may be missing either.
        """
        stage, config = self._stages[name], self._config
        producers = {file: other for other in self._stages for file in self._outputs(other)}
        inputs = (*self._inputs(name), *stage.inputs_if_present)
        others = [producers[file] for file in inputs if file in producers]
        reads = [other for other in stage.reads(config) if self._stages[other].needed(config)]
        before = itertools.takewhile(lambda other: other != name, self._stages)
        names = list(before) if stage.always else [*others, *reads, name]

        def verify() -> str:
            for other in dict.fromkeys(names):
                if other not in self._verified:
                    check_unchanged(self.root, other)
            for other in reads:
                if lost := self._workdir.missing(other):
                    remedy = self._stages[other].remedy(self.root, lost)
                    remedy = remedy or f"Run --mode={other} or --mode=all to make it again."
                    raise UserError(f"{self._is_missing(lost[0], other)} {remedy}")
            return ""

        # Only the first process, or another might see the outputs that it already replaces.
        self._processes.run_on_first(verify)
        self._verified.update(names)

    def _is_missing(self, file: str, stage: str) -> str:
        return f"{self.root / file}, which the {stage} stage wrote, is missing."

    def _undamaged(self, stored: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> str:
        """Returns what to do about a training if only outputs of other stages differ."""
        changes = differing(stored, fingerprint)
        makers = {f"file {file}": other for other in self._stages for file in self._outputs(other)}
        if not makers.keys() >= set(changes):
            return ""
        # Earlier versions recorded no digests.
        unverified = [key for key in changes if not recorded(self.root, makers[key])]
        if unverified:
            return (
                f"If {self.root / unverified[0].removeprefix('file ')} may be damaged, delete it: "
                "--mode=all makes it again and keeps the training. Otherwise: "
            )
        return (
            "If only last digits differ, because they were made again on other devices, the "
            "other modes go on with the student as it is. Otherwise: "
        )

    def _outputs(self, name: str) -> tuple[str, ...]:
        split = self._config.eval.split
        return tuple(file.format(split=split) for file in self._stages[name].outputs)

    def _written(self, name: str) -> list[str]:
        """Returns the existing files that a stage wrote; checkpoints have their own checksums."""
        stage = self._stages[name]
        if stage.always:
            return []
        patterns = (*(() if stage.training else self._outputs(name)), *stage.also)
        paths = [path for pattern in patterns for path in self.root.glob(pattern)]
        found = [file for path in paths for file in files.files_at(path)]
        return sorted({file.relative_to(self.root).as_posix() for file in found})

    def fingerprint(self, name: str) -> dict[str, Any]:
        """Returns the fingerprint of what a stage depends on."""
        stage = self._stages[name]
        settings = settings_of(stage, self._config, self._workdir)
        existing = [file for file in stage.inputs_if_present if (self._workdir / file).exists()]
        inputs = [*self._inputs(name), *existing]
        return self._workdir.fingerprint(settings, inputs, stage.external(self._config))

    def _inputs(self, name: str) -> list[str]:
        """Returns the files of the work directory that a stage reads."""
        needed = (stage for stage in self._stages.values() if stage.needed(self._config))
        outputs = {file for stage in needed for file in stage.outputs}
        stage = self._stages[name]
        inputs = [file.format(split=self._config.eval.split) for file in stage.inputs]
        return [*inputs, *(file for file in stage.inputs_if_needed if file in outputs)]


def settings_of(stage: Stage, config: Any, workdir: Workdir | None = None) -> dict[str, Any]:
    """Returns the configuration's flat keys and values that a stage depends on."""
    return {
        key: value
        for key, value in config_dict.flatten(config).items()
        if any(key == part or key.startswith(f"{part}.") for part in stage.keys)
    } | stage.settings(config, workdir)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A stage's dependencies as determined from the configuration alone, before anything runs.

    Attributes:
      settings: configuration keys and values that it depends on.
      dependencies: recipes of the stages whose files it reads.
    """

    settings: dict[str, Any]
    dependencies: "tuple[Recipe, ...]"


def recipes(stages: Mapping[str, Stage], config: Any) -> dict[str, Recipe]:
    """Returns the recipes of the stages whose outputs runs may share.

    Two runs' outputs of a stage are equal if its recipes are.
    """
    result: dict[str, Recipe] = {}
    producers: dict[str, str] = {}
    for name, stage in stages.items():
        if stage.training:
            break  # Training and the stages after it are not shared between runs.
        if stage.needed(config):
            inputs = (*stage.inputs, *stage.inputs_if_needed)
            read = {producers[file] for file in inputs if file in producers}
            dependencies = tuple(result[other] for other in sorted(read))
            result[name] = Recipe(json.loads(json.dumps(settings_of(stage, config))), dependencies)
            producers |= dict.fromkeys(stage.outputs, name)
    return result
