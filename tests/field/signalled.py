"""Runs the program and sends it a signal at a chosen point.

    python -m tests.field.signalled POINT SIGNAL FLAGS

A point is MODULE:NAME:N, the N-th call of a function or of what a factory (make_…) returns; or
import:MODULE, in the middle of an import.
"""

import importlib
import importlib.abc
import os
import runpy
import signal
import sys


class OnImport(importlib.abc.MetaPathFinder):
    """Sends the signal when a module is looked for."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number

    def find_spec(self, fullname, path=None, target=None):
        if fullname == self.name:
            os.kill(os.getpid(), self.number)


def counted(function, n: int, number: int):
    calls = 0

    def call(*args, **options):
        nonlocal calls
        calls += 1
        if calls == n:
            os.kill(os.getpid(), number)
        return function(*args, **options)

    return call


def patch(module: str, name: str, n: int, number: int) -> None:
    owner = importlib.import_module(module)
    *parents, name = name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original = getattr(owner, name)
    if name.startswith("make_"):
        made = lambda *args, **options: counted(original(*args, **options), n, number)  # noqa: E731
        setattr(owner, name, made)
    else:
        setattr(owner, name, counted(original, n, number))


if __name__ == "__main__":
    point, number = sys.argv[1], int(getattr(signal, sys.argv[2]))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # A job in the background ignores it.
    module, _, rest = point.partition(":")
    if module == "import":
        sys.meta_path.insert(0, OnImport(rest, number))
    elif module:
        name, _, n = rest.partition(":")
        patch(module, name, int(n), number)
    sys.argv[1:] = sys.argv[3:]
    runpy.run_module("kpod_jax.main", run_name="__main__", alter_sys=True)
