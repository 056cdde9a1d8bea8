"""Rooms of the package import what CONTRIBUTING.md's map lets them know, and nothing else."""

import ast
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "torch"}
_COMMON = {"errors", "files", "plugins"}
# What each room may import of the package besides itself.
KNOWS = {
    "data": {*_COMMON, "answers"},
    "models": {*_COMMON, "sharding", "data.tokens", "data.tokenizers"},
    "schedule": {*_COMMON, "data"},
    "teacher": {*_COMMON, "answers", "configuration", "data", "progress", "workdir"},
}
WITHOUT_JAX = ("data", "schedule", "teacher")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "kpod_jax").rglob("*.py")
}


def imports(source: str) -> set[str]:
    """Modules that a source imports, wherever in it; of the package, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are by full names"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inner or {str(node.module)}
    return found


def not_known(room: str, source: str) -> set[str]:
    """What a source of a room imports of the package although it may not."""
    allowed = {f"kpod_jax.{name}" for name in {*KNOWS[room], room}} | {"kpod_jax"}
    return {
        name
        for name in imports(source)
        if name.partition(".")[0] == "kpod_jax"
        and not any(name == a or (a != "kpod_jax" and name.startswith(f"{a}.")) for a in allowed)
    }


def with_jax(source: str) -> Iterator[str]:
    """The ways by which a source comes to JAX through modules of the package."""

    def named(source: str) -> set[str]:
        names = imports(source)  # A module comes with the package that it is in.
        return names | {name.rpartition(".")[0] for name in names}

    waiting, seen = [(name,) for name in named(source)], set()
    while waiting:
        way = waiting.pop()
        if way[-1].partition(".")[0] in JAX:
            yield " -> ".join(way)
        elif way[-1] in MODULES and way[-1] not in seen:
            seen.add(way[-1])
            waiting += [(*way, name) for name in named(MODULES[way[-1]].read_text())]


def of(room: str) -> list[str]:
    return sorted(name for name in MODULES if f"{name}.".startswith(f"kpod_jax.{room}."))


@pytest.mark.parametrize("module", [name for room in KNOWS for name in of(room)])
def test_a_room_knows_those_before_it(module):
    assert not not_known(module.split(".")[1], MODULES[module].read_text())


@pytest.mark.parametrize("module", [name for room in WITHOUT_JAX for name in of(room)])
def test_rooms_of_the_host_come_to_no_jax(module):
    assert not list(with_jax(MODULES[module].read_text()))


def test_the_pipeline_alone_knows_the_stages_order():
    for module in MODULES.keys() - {"kpod_jax.main", "kpod_jax.pipeline"} - {*of("sweep")}:
        assert "kpod_jax.pipeline" not in imports(MODULES[module].read_text()), module


@pytest.mark.parametrize(
    ("room", "source", "expected"),
    [
        ("schedule", "from kpod_jax import losses, files", {"kpod_jax.losses"}),
        ("schedule", "def f():\n    import kpod_jax.models.t5", {"kpod_jax.models.t5"}),
        ("models", "from kpod_jax.data.steps import split_steps", {"kpod_jax.data.steps"}),
        ("models", "from kpod_jax.models.t5 import T5\nfrom kpod_jax import plugins", set()),
        ("data", "from kpod_jax.datasets import x", {"kpod_jax.datasets"}),
    ],
)
def test_an_import_that_is_not_allowed_is_found(room, source, expected):
    assert not_known(room, source) == expected


def test_a_way_to_jax_is_found():
    assert "jax.numpy" in with_jax("import jax.numpy as jnp")
    assert "kpod_jax.sharding -> jax" in with_jax("from kpod_jax.sharding import use")
    assert not list(with_jax("import numpy\nfrom kpod_jax import errors"))
