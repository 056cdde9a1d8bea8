"""The command line: python -m kpod_jax.main --config=FILE --workdir=DIR [--mode=STAGE].

Set single keys with --config.KEY=VALUE, such as --config.distill.epochs=5.
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
from kpod_jax.config.defaults import Config
from kpod_jax.parallel import processes
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError


class _ConfigParser(ConfigFileFlagParser):
    """Parser that finds the package's configurations from any directory."""

    def parse(self, path: str) -> Any:
        resolved = files.config_file(path)
        if not pathlib.Path(resolved.partition(":")[0]).is_file():
            raise UserError(f"--config={path}: no such Python file.")
        return super().parse(resolved)


_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, such as configs/t5_base.py.", lock_config=True
)
flags.FLAGS["config"].parser = _ConfigParser("config", lock_config=True)
_HELP = ("--help", "-help", "-h", "--helpshort", "-helpshort", "-?")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for all files of the run.")
_MODE = flags.DEFINE_enum(
    "mode",
    "all",
    list(usage.MODES),
    "What to run: a stage, all stages except the export, or one of the other modes above.",
)
_SWEEP = flags.DEFINE_string(
    "sweep", None, "Python file whose get_runs() returns the runs of --mode=sweep."
)
_RECORDS = flags.DEFINE_list(
    "records", [], "Ids of the training records that --mode=heatmap shows; default: a sample."
)
_RUNS = flags.DEFINE_list(
    "runs",
    [],
    "Work directories that --mode=compare compares; join seeds of one method with +. With "
    "--mode=sweep: names of the runs to run in this process, without a comparison; default: all.",
)
_PARALLEL = flags.DEFINE_integer("parallel", 1, "Number of parallel runs of --mode=sweep.")
_SPLIT = flags.DEFINE_string("split", "test", "Split whose predictions --mode=compare compares.")
_TOPOLOGY = flags.DEFINE_string(
    "topology", "v5e:4x4", "TPU slice that --mode=compile compiles for: TYPE:SHAPE."
)
_STEPS = flags.DEFINE_list(
    "steps",
    [],
    "Steps that --mode=compile compiles: train, fit, learn, fill, decode; default: all.",
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Directory for the files of --mode=compare; default: that of the first run."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "HOST:PORT of the first of several processes, if JAX cannot detect it (it can on Cloud TPU, "
    "under SLURM and Open MPI); off: this process runs alone.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 0, "Number of processes, with --coordinator."
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", -1, "Index of this process, from 0, with --coordinator."
)
_FLAGS = (
    *(_CONFIG, _WORKDIR, _MODE, _SWEEP, _PARALLEL, _RUNS, _SPLIT, _OUTPUT, _RECORDS),
    *(_TOPOLOGY, _STEPS, _COORDINATOR, _NUM_PROCESSES, _PROCESS_ID),
)
_MEMORY_ADVICE = (
    "A device ran out of memory. Reduce the batch size of this stage (weighting.batch_size, "
    "difficulty.batch_size, distill.batch_size or eval.batch_size), use gradient accumulation "
    "(distill.micro_batches), or recompute activations (student.remat=full)."
)


def main(argv: list[str]) -> None:
    """Runs the mode given by the flags; errors the user can fix are printed as one message."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.WARNING)  # Orbax logs a lot at INFO; progress is printed.
    try:
        _run()
    except processes.Preempted as preempted:
        print(f"\nTerminated: {preempted}. Run the same command to resume.", file=sys.stderr)
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
    mode, workdir = _MODE.value, _WORKDIR.value or ""
    if mode in ("compile", "teach"):
        # Ahead-of-time compilation needs no accelerator; a teacher on this machine needs it.
        jax.config.update("jax_platforms", "cpu")
    if mode not in ("compare", "compile"):
        _prepare(mode)
    # Each mode imports what it needs, so that --help and errors come at once.
    match mode:
        case "compare":
            from kpod_jax.evaluation import significance

            print(*significance.compare(_RUNS.value, _SPLIT.value, _OUTPUT.value), sep="\n")
        case "compile":
            from kpod_jax.aot import compile

            steps = _STEPS.value or compile.STEPS
            compile.compile_for(_config(), _TOPOLOGY.value, workdir, steps)
        case "heatmap":
            from kpod_jax import report

            page, picture, text = report.heat_map(workdir, _RECORDS.value)
            print(text, "", page, picture, sep="\n")
        case "teach":
            from kpod_jax import teacher

            print(teacher.teach(_config(), workdir))
        case "sweep":
            from kpod_jax import sweep

            if not _SWEEP.value:
                raise UserError("Missing --sweep, such as --sweep=configs/sweeps/quickstart.py.")
            if not sweep.main(_SWEEP.value, workdir, _RUNS.value, _PARALLEL.value):
                sys.exit(1)
        case stage:
            from kpod_jax import pipeline

            pipeline.run(_config(), workdir, stage)


def _config() -> Config:
    if _CONFIG.value is None:
        raise UserError("Missing --config, such as --config=configs/quickstart.py.")
    from kpod_jax.cli import checks

    checks.check(_CONFIG.value)
    return _CONFIG.value


def _prepare(mode: str) -> None:
    """Sets up the process of a mode that writes into a work directory."""
    if not _WORKDIR.value:
        raise UserError("Missing --workdir, the directory for all files of the run.")
    # Reuse compiled steps across processes.
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", _cache_directory())
    # When a checkpoint cannot be written, asyncio repeats an error that is already reported.
    standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
    # Only tokenizers of transformers are used; silence its warnings about missing frameworks.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if mode in ("heatmap", "teach"):
        return  # These need no devices.
    # Import before SIGTERM raises: C++ libraries do not survive an interrupted import.
    import kpod_jax.pipeline
    import kpod_jax.sweep  # noqa: F401

    # Must come before the first use of devices. Parallel runs of a sweep are separate processes.
    if mode != "sweep" or _RUNS.value or _PARALLEL.value == 1:
        processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    processes.raise_on_sigterm()


def _cache_directory() -> str:
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return str(pathlib.Path(root) / "kpod_jax" / "compiled")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; errors, such as unknown keys, are printed without a traceback."""
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
        message = f"no such configuration key: {_text(error)}"
    print(
        f"error: {message}\nSee --help for the flags, and python -m kpod_jax.cli.reference or "
        "docs/configuration.md for the configuration keys.",
        file=sys.stderr,
    )
    sys.exit(2)


def _text(error: Exception) -> str:
    """Returns an error's own text on one line; ml_collections wraps one error in another."""
    first = error.args[0] if error.args else ""
    return _text(first) if isinstance(first, Exception) else " ".join(str(first).split())


def command() -> None:
    """Entry point of the command kpod-jax; finds custom modules as `python -m` does."""
    sys.path.insert(0, os.getcwd())
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    command()
