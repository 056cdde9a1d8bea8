"""What a run says first and last: what it is, its results, and the next commands."""

import os
import pathlib
import shlex

import jax

from kpod_jax.config.defaults import Config, method_name, trained_method
from kpod_jax.evaluation import results
from kpod_jax.models.student import Student
from kpod_jax.utils.printable import printable
from kpod_jax.version import __version__

_GPU = pathlib.Path("/dev/nvidia0")


def banner(config: Config, student: Student, mesh: jax.sharding.Mesh, root: pathlib.Path) -> str:
    """Returns lines with version, method, student, data, devices and work directory.

    Args:
      config: the run's configuration.
      student: model without parameters.
      mesh: the mesh of the run.
      root: the work directory.
    """
    count = sum(leaf.size for leaf in jax.tree.leaves(student.abstract(mesh)))
    device = mesh.devices.flat[0]
    lines = [
        f"KPOD-JAX {__version__}: {method_name(trained_method(config))}, student {student.model} "
        f"({_short(count)} parameters), data {config.data.path or config.data.name}",
        f"{mesh.size} × {device.device_kind}, {config.student.dtype}; writes to {root}",
    ]
    if device.platform == "cpu" and _GPU.exists() and "JAX_PLATFORMS" not in os.environ:
        lines.append(
            'hint: JAX does not use the NVIDIA GPU of this machine; pip install "jax[cuda13]"'
        )
    return "\n  ".join(lines)


def ending(config: Config, root: pathlib.Path) -> str:
    """Returns a table of a run's results and the next commands.

    Args:
      config: the run's configuration.
      root: the work directory.

    Raises:
      UserError: the results are missing or damaged.
    """
    found = results.read(root)
    name = f"{pathlib.PurePath(config.data.path or config.data.name).name} {found['split']}"
    sets = {name: found, **{f"{other} test": part for other, part in found["ood"].items()}}
    rows = [("method", "questions", "accuracy", "95% interval", "correct")]
    for data, part in sets.items():
        low, high = part["interval"]
        rows.append(
            (
                method_name(found["method"]),
                data,
                f"{part['accuracy']:.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{part['correct']:g} of {part['total']}",
            )
        )
    widths = [max(map(len, column)) + 2 for column in zip(*rows, strict=True)]
    table = [
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines = ["", *table, "", f"Report: {root / 'report.html'}", *next_commands(root)]
    return "\n".join(printable(line) for line in lines)


def next_commands(run: pathlib.Path) -> list[str]:
    """Returns lines with the commands that may follow a run."""
    program, path = "  python -m kpod_jax.main", shlex.quote(str(run))
    return [
        "Next:",
        f"{program} --config={path} --workdir={path} --mode=export",
        f"{program} --mode=compare --runs={path},OTHER_RUN",
    ]


def _short(count: int) -> str:
    """Returns 247.6 M for 247,577,856."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
