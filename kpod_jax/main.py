"""The command line: python -m kpod_jax.main --config=FILE --workdir=DIR [--mode=STAGE].

Set single keys with --config.KEY=VALUE, such as --config.distill.epochs=5.
"""

import errno
import importlib
import logging as standard_logging
import os
import pathlib
import signal
import sys
from typing import Any

from kpod_jax.utils import signals

if __name__ == "__main__":
    signals.exit_on_interrupt()

import jax
from absl import app, flags, logging

from kpod_jax.cli import arguments, usage
from kpod_jax.config.defaults import Config
from kpod_jax.parallel import processes
from kpod_jax.utils.errors import UserError, one_line, why
from kpod_jax.utils.printable import Formatter, message, printable

_CONFIG = flags.DEFINE_string(
    "config", None, "Configuration file, such as configs/t5_base.py, or configs/t5_base.py:METHOD."
)
_HELP = ("--help", "-help", "-h", "--helpshort", "-helpshort", "-?")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for all files of the run.")
_MODE = flags.DEFINE_enum(
    "mode",
    "all",
    list(usage.MODES),
    "What to run: a stage, all stages except the export, or one of the other modes above.",
)
flags.FLAGS["mode"].parser = arguments.ChoiceParser(list(usage.MODES))
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
_TFLOPS = flags.DEFINE_float(
    "tflops", 0.0, "TFLOP/s that --mode=plan counts with; default: 40% of the devices' peak."
)
_KEYS = flags.DEFINE_string(
    "keys", "", "Keys that --mode=keys lists: a part of the name, or a pattern with *."
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
    *(_CONFIG, _WORKDIR, _MODE, _SWEEP, _PARALLEL, _RUNS, _SPLIT, _OUTPUT, _RECORDS, _KEYS),
    *(_TOPOLOGY, _STEPS, _TFLOPS, _COORDINATOR, _NUM_PROCESSES, _PROCESS_ID),
)
_MEMORY_ADVICE = (
    "A device ran out of memory. Reduce the batch size of this stage (weighting.batch_size, "
    "difficulty.batch_size, distill.batch_size or eval.batch_size), use gradient accumulation "
    "(distill.micro_batches), or recompute activations (student.remat=full)."
)


_ALONE = ("compare", "compile", "heatmap", "keys", "plan", "teach")  # Modes of a single process.
_WRITELESS = ("compare", "compile", "keys", "plan")  # Modes that need no work directory.
# What each mode runs; the others are stages of the pipeline.
_MODULES = {
    "compare": "kpod_jax.evaluation.significance",
    "compile": "kpod_jax.aot.compile",
    "heatmap": "kpod_jax.report",
    "keys": "kpod_jax.cli.reference",
    "plan": "kpod_jax.aot.plan",
    "push": "kpod_jax.push",
    "teach": "kpod_jax.teacher",
    "sweep": "kpod_jax.sweep",
}


def main(argv: list[str]) -> None:
    """Runs the mode given by the flags; errors the user can fix are printed as one message."""
    del argv  # `parse_flags` leaves nothing.
    logging.set_verbosity(logging.WARNING)  # Orbax logs a lot at INFO; progress is printed.
    handler = logging.get_absl_handler()
    if not isinstance(handler.formatter, Formatter):
        handler.setFormatter(Formatter())
    try:
        _run()
    except signals.Preempted as preempted:
        _exit(preempted.exit_code, str(preempted))
    except KeyboardInterrupt:
        interrupted = signals.Interrupted()
        _exit(interrupted.exit_code, str(interrupted))
    except UserError as error:
        first, *others = str(error).split("\n  ")
        one = len(others) == 1  # A single fault needs no list.
        _exit(error.exit_code, f"error: {first} {others[0]}" if one else f"error: {error}")
    except OSError as error:
        if not error.errno:
            raise
        if isinstance(error, BrokenPipeError):  # Nobody reads the output, as in `… | head`.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = f"Cannot write {error.filename or 'a file'}"
            _exit(
                2, f"error: {place}: {why(error)}. Free some space and run the same command again."
            )
        place = f"Cannot access {error.filename}" if error.filename else "The system failed"
        _exit(2, f"error: {place}: {why(error)}.")
    except jax.errors.JaxRuntimeError as error:
        if "out of memory" not in str(error).lower():
            raise
        _exit(2, f"error: {one_line(error)} {_MEMORY_ADVICE}")


def _exit(code: int, text: str) -> None:
    # A terminal may show ^C, or a progress bar, in the line.
    print("\n" * sys.stderr.isatty() + message(text), file=sys.stderr, flush=True)
    sys.exit(code)


def _run() -> None:
    mode, workdir = _MODE.value, _WORKDIR.value or ""
    if mode in ("compile", "teach"):
        # Ahead-of-time compilation needs no accelerator; a teacher on this machine needs it.
        jax.config.update("jax_platforms", "cpu")
    if mode not in _WRITELESS and not workdir:
        raise UserError("Missing --workdir, the directory for all files of the run.")
    if mode not in _WRITELESS:
        _prepare()
    # Each mode imports what it needs, so that --help and errors come at once; and before signals
    # raise, because C++ libraries do not survive an interrupted import.
    module: Any = importlib.import_module(_MODULES.get(mode, "kpod_jax.pipeline"))
    if mode not in _ALONE:
        # Must come before the first use of devices. Parallel runs of a sweep are processes.
        if mode != "sweep" or _RUNS.value or _PARALLEL.value == 1:
            processes.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        processes.raise_on_sigterm()
    if mode == "teach":  # asyncio has its own handler, but only in place of Python's.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    else:
        signals.raise_on(signal.SIGINT)
    match mode:
        case "compare":
            table = module.compare(_RUNS.value, _SPLIT.value, _OUTPUT.value)
            print(*(printable(line, "\n") for line in table), sep="\n")
        case "compile":
            steps = _STEPS.value or module.STEPS
            module.compile_for(_config(), _TOPOLOGY.value, workdir, steps)
        case "heatmap":
            page, picture, text = module.heat_map(workdir, _RECORDS.value)
            print(text, "", printable(page), printable(picture), sep="\n")
        case "plan":
            print(module.plan(_config(), _TFLOPS.value))
        case "push":
            module.push(_config(), workdir)
        case "teach":
            print(*map(message, module.teach(_config(), workdir).splitlines()), sep="\n")
        case "sweep":
            if not _SWEEP.value:
                raise UserError("Missing --sweep, such as --sweep=configs/sweeps/quickstart.py.")
            if not module.main(_SWEEP.value, workdir, _RUNS.value, _PARALLEL.value):
                sys.exit(1)
        case "keys":
            print(module.keys(_KEYS.value), end="")
        case stage:
            root = module.run(_config(), workdir, stage)
            if stage == "all" and jax.process_index() == 0:
                from kpod_jax.cli import terminal

                print(terminal.ending(_config(), root))


def _config() -> Config:
    config: Any = _CONFIG.value  # `parse_flags` has loaded it.
    if not config:
        raise UserError("Missing --config, such as --config=configs/quickstart.py.")
    from kpod_jax.cli import checks

    checks.check(config)
    return config


def _prepare() -> None:
    """Sets up the process of a mode that writes into a work directory."""
    # Reuse compiled steps across processes.
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", _cache_directory())
    # When a checkpoint cannot be written, these repeat an error that is already reported.
    standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
    logging.get_absl_handler().addFilter(
        lambda record: (
            record.levelno < standard_logging.ERROR or "/orbax/checkpoint/" not in record.pathname
        )
    )
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda raised: (
        None if str(raised.exc_value) == "Event loop is closed" else unraisable(raised)
    )
    # Only tokenizers of transformers are used; silence its warnings about missing frameworks.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _cache_directory() -> str:
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return str(pathlib.Path(root) / "kpod_jax" / "compiled")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags and loads the configuration; errors are printed without a traceback."""
    if any(argument in _HELP for argument in argv[1:]):
        print(usage.text(holder.name for holder in _FLAGS), end="")
        sys.exit(0)
    try:
        arguments.check_text([*argv, _working_directory()])
        given = arguments.with_pattern(flags.FLAGS.read_flags_from_files(argv[1:]))
        others, changes = arguments.split(given)
        arguments.parse(flags.FLAGS, others)
        if _CONFIG.value:
            flags.FLAGS["config"].value = arguments.config(_CONFIG.value, changes)
    except UserError as error:
        _exit(2, f"error: {error}")
    return argv[:1]


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise UserError("The working directory was deleted; change to another one.") from error


def command() -> None:
    """Entry point of the command kpod-jax; finds custom modules as `python -m` does."""
    sys.path.insert(0, "")
    try:
        app.run(main, flags_parser=parse_flags)
    finally:
        signals.exit_on_interrupt()  # All is said and saved.


if __name__ == "__main__":
    command()
