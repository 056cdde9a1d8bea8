r"""Speed and memory beside transformers and torch, on the same machine and the same work.

    python -m benchmarks.speed                          # prints the tables for this device
    python -m benchmarks.speed --write                  # and puts them into benchmarks/RESULTS.md
    python -m benchmarks.speed --only=train,generate
    python -m benchmarks.speed --gpu [--miniature]      # the tables for an accelerator

Sides take turns, A, B, A, B. On a CPU processor time is compared, with one thread a side unless
--threads says otherwise, so that other programs matter little; on an accelerator time is. It needs
what `make test` installs. Every table is made by a process of its own.
"""

import datetime
import shlex
import subprocess
import sys
from collections.abc import Iterator

from absl import app, flags

from benchmarks import tables
from benchmarks.speed import machine, sections

_THREADS = flags.DEFINE_integer("threads", 1, "Of JAX and of torch, on a CPU.")
_GPU = flags.DEFINE_bool("gpu", False, "The tables for an accelerator, whatever there is.")
_SECTION = flags.DEFINE_string("section", None, "Makes one table in this process.")

PAGE = "benchmarks/RESULTS.md"
_DEVICE = "import jax; from benchmarks.speed.machine import device; print(jax.default_backend()); "
_HEADER_LINES = 2
_HEADER = ("| table | device | versions | date | command |", "| --- " * 5 + "|")


def measured(name: str) -> Iterator[list[str]]:
    """The lines of a table so far, printed as its process finds them.

    Raises:
      subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.speed", *sys.argv[1:], f"--section={name}"]
    rows = []
    with subprocess.Popen(
        command, env=machine.environment(_THREADS.value), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("|"):
                rows.append(line.rstrip("\n"))
                print(rows[-1], flush=True)
                yield rows
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def note_run(page: str, name: str, device: str) -> None:
    """Writes what a table was measured on into the page's table of runs."""
    known = {line.split("|")[1].strip(): line for line in tables.get(page, "runs")}
    command = shlex.join(["python", "-m", "benchmarks.speed", *sys.argv[1:]])
    today = datetime.date.today().isoformat()
    known[name] = f"| {name} | {device} | {machine.versions()} | {today} | `{command}` |"
    rows = [known[table] for table in (*sections.CPU, *sections.GPU) if table in known]
    tables.put(page, "runs", [*_HEADER, *rows])


def main(argv: list[str]) -> None:
    """Makes the tables."""
    del argv
    made = sections.CPU | sections.GPU
    if _SECTION.value:
        for row in made[_SECTION.value]():
            print(row, flush=True)
        return
    asked = subprocess.run(
        [sys.executable, "-c", f"{_DEVICE}print(device({_THREADS.value}))"],
        env=machine.environment(_THREADS.value),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    backend, device = asked.stdout.splitlines()[-2:]
    default = sections.GPU if _GPU.value or backend != "cpu" else sections.CPU
    names = tables.only(list(made)) or list(default)
    failed = []
    for name in names:
        print(f"\n{name}", flush=True)
        try:
            for rows in measured(name):
                if tables.WRITE.value and len(rows) > _HEADER_LINES:
                    tables.put(PAGE, name, rows)
                    note_run(PAGE, name, device)
        except subprocess.CalledProcessError:
            failed.append(name)
    if failed:
        sys.exit(f"\nNot made: {', '.join(failed)}; see above.")


if __name__ == "__main__":
    app.run(main)
