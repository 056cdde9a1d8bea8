"""Rooms import only rooms above them, and what runs on the host alone needs no JAX."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

ROOMS = (
    "utils config data parallel models training weighting schedule baselines evaluation teacher "
    "aot report cli sweep pretrain"
).split()


@pytest.mark.parametrize("place", range(len(ROOMS)), ids=ROOMS)
def test_a_room_imports_only_rooms_above_it(place):
    for path in (ROOT / "kpod_jax" / ROOMS[place]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                package, _, rest = str(node.module).partition(".")
                rooms = [rest] if rest else [alias.name for alias in node.names]
                if package == "kpod_jax":
                    for room in (name.partition(".")[0] for name in rooms):
                        assert room not in ROOMS[place + 1 :], f"{path} imports {room}"


@pytest.mark.parametrize("module", ["data.sources", "schedule.curricula", "teacher.teach"])
def test_what_runs_on_the_host_needs_no_jax(module):
    code = f"import sys, kpod_jax.{module}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
