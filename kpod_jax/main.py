"""The command line: python -m kpod_jax.main --config=FILE --workdir=DIR [--mode=STAGE].

Single keys are changed with --config.KEY=VALUE, as in --config.distill.epochs=5.
"""

import logging as standard_logging
import os
import pathlib
import sys
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from kpod_jax.cli import usage
from kpod_jax.parallel import processes
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError


class _ConfigParser(ConfigFileFlagParser):
    """Finds the package's own configurations from any directory."""

    def parse(self, path: str) -> Any:
        found = files.config_file(path)
        if not pathlib.Path(found.partition(":")[0]).is_file():
            raise UserError(f"--config={path}: no such Python file.")
        return super().parse(found)


_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, such as configs/t5_base.py.", lock_config=True
)
flags.FLAGS["config"].parser = _ConfigParser("config", lock_config=True)
_HELP = ("--help", "-help", "-h", "--helpshort", "-helpshort", "-?")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for everything the run writes.")
_MODE = flags.DEFINE_enum(
    "mode",
    "all",
    list(usage.MODES),
    "What to do: a stage, all of them without the export, or one of the other modes above.",
)
_SWEEP = flags.DEFINE_string(
    "sweep", None, "Python file whose get_runs() names the runs of --mode=sweep."
)
_RECORDS = flags.DEFINE_list(
    "records", [], "Ids of the training records that --mode=heatmap shows; none: some of all."
)
_RUNS = flags.DEFINE_list(
    "runs",
    [],
    "Work directories that --mode=compare compares; seeds of one are joined by +. Or the names of "
    "the runs of --mode=sweep that are made in this process, without a comparison; none: all.",
)
_PARALLEL = flags.DEFINE_integer("parallel", 1, "Runs of --mode=sweep at work at the same time.")
_SPLIT = flags.DEFINE_string("split", "test", "Predictions that --mode=compare reads.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", "v5e:4x4", "TPUs that --mode=compile compiles for: a kind and a slice's sides."
)
_STEPS = flags.DEFINE_list(
    "steps", [], "Steps that --mode=compile compiles: train, fit, learn, fill, decode; none: all."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for the files of --mode=compare; none: the first run's."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "HOST:PORT of the first of several processes, where JAX does not find out by itself (it does "
    "on Cloud TPU, under SLURM and Open MPI); off: this process runs alone.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Of all, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Of this one, from 0, with --coordinator.")
_FLAGS = (
    *(_CONFIG, _WORKDIR, _MODE, _SWEEP, _PARALLEL, _RUNS, _SPLIT, _OUTPUT, _RECORDS),
    *(_TOPOLOGY, _STEPS, _COORDINATOR, _NUM_PROCESSES, _PROCESS_ID),
)
_MEMORY_ADVICE = (
    "A device's memory is full. Lower the batch size of the stage at work (weighting.batch_size, "
    "difficulty.batch_size, distill.batch_size or eval.batch_size), split the steps "
    "(distill.micro_batches), or recompute activations (student.remat=full)."
)


def main(argv: list[str]) -> None:
    """Runs what the flags ask for; what a user can put right is said in one message."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # Orbax says much below it; our lines are printed.
    try:
        _run()
    except processes.Preempted as told:
        print(f"\nTold to end: {told}. The same command goes on from there.", file=sys.stderr)
        sys.exit(processes.EXIT_PREEMPTED)
    except UserError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(2)
    except jax.errors.JaxRuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        print(f"\nerror: {error}\n{_MEMORY_ADVICE}", file=sys.stderr)
        sys.exit(2)


def _run() -> None:
    if _MODE.value == "compare":
        from kpod_jax.evaluation import significance

        text, path = significance.compare(_RUNS.value, _SPLIT.value, _OUTPUT.value)
        print(f"{text}\n{path}")
        return
    if _MODE.value == "compile":
        from kpod_jax.aot import compile
        from kpod_jax.cli import checks

        jax.config.update("jax_platforms", "cpu")  # The compiler's host; it takes no accelerator.
        if _CONFIG.value is None:
            raise UserError("--config is missing, such as --config=configs/t5_base.py.")
        checks.check(_CONFIG.value)
        steps = _STEPS.value or compile.STEPS
        compile.compile_for(_CONFIG.value, _TOPOLOGY.value, _WORKDIR.value, steps)
        return
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: the directory for everything that the run writes.")
    # Compiled steps outlive the process that compiled them.
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", _cache_directory())
    # What a checkpoint that cannot be written leaves behind; its error is told once, by ours.
    standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
    # Models are ours; of transformers only tokenizers are used, and it need not say so each time.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Before anything asks for devices. These need none; of a sweep's runs that are made at the same
    # time each has a process of its own.
    if _MODE.value not in ("heatmap", "teach"):
        # Before SIGTERM raises: libraries of C++ do not survive an import that is cut off.
        import kpod_jax.pipeline
        import kpod_jax.sweep  # noqa: F401

        if _MODE.value != "sweep" or _RUNS.value or _PARALLEL.value == 1:
            processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        processes.raise_on_sigterm()
    if _MODE.value == "sweep":
        from kpod_jax import sweep

        if not _SWEEP.value:
            raise UserError("--mode=sweep needs --sweep, such as configs/sweeps/quickstart.py.")
        if _RUNS.value:
            sweep.make(_SWEEP.value, _WORKDIR.value, _RUNS.value)
        elif failed := sweep.run(_SWEEP.value, _WORKDIR.value, parallel=_PARALLEL.value):
            lines = [f"  {name}: {reason}" for name, reason in failed.items()]
            print("\nRuns that failed:", *lines, sep="\n", file=sys.stderr)
            sys.exit(1)
        return
    if _MODE.value == "heatmap":
        from kpod_jax import report

        page, picture, shown = report.heat_map(_WORKDIR.value, _RECORDS.value)
        print(f"{shown}\n\n{page}\n{picture}")
        return
    if _CONFIG.value is None:
        raise UserError("--config is missing, such as --config=configs/quickstart.py.")
    from kpod_jax.cli import checks

    checks.check(_CONFIG.value)
    if _MODE.value == "teach":
        from kpod_jax import teacher

        # The GPU is left to a teacher that is served on this machine.
        jax.config.update("jax_platforms", "cpu")
        print(teacher.teach(_CONFIG.value, _WORKDIR.value))
        return
    from kpod_jax import pipeline

    pipeline.run(_CONFIG.value, _WORKDIR.value, _MODE.value)


def _cache_directory() -> str:
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return str(pathlib.Path(root) / "kpod_jax" / "compiled")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; a key or a method that does not exist is one line, not a traceback."""
    if any(argument in _HELP for argument in argv[1:]):
        print(usage.text(holder.name for holder in _FLAGS), end="")
        sys.exit(0)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        message = str(error)
    except (UserError, OSError) as error:
        message = str(error)
    except (KeyError, AttributeError, TypeError) as error:
        message = f"no such configuration key: {error.args[0] if error.args else error}"
    print(
        f"error: {message}\nSee --help; the keys are in docs/configuration.md, which "
        "python -m kpod_jax.cli.reference prints.",
        file=sys.stderr,
    )
    sys.exit(2)


def command() -> None:
    """The command kpod-jax, which finds modules of one's own as `python -m` does."""
    sys.path.insert(0, os.getcwd())
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    command()
