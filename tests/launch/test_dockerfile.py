"""The Dockerfile, read and not built: what it copies, whom it runs as, and what it starts."""

import fnmatch
import importlib.util
import json

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "launch"


def stages():
    """Instructions by stage: {name: (base, [(instruction, rest)])}."""
    text = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
    result = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = rest.split()
            result[name] = (base, [])
        elif result:
            result[list(result)[-1]][1].append((instruction, rest))
    return result


def copied():
    """Sources in the build context, and their targets."""
    rests = [rest for _, lines in stages().values() for key, rest in lines if key == "COPY"]
    return [rest.split() for rest in rests if not rest.startswith("--from=")]


def test_what_is_copied_is_there_and_not_ignored():
    patterns = (FOLDER / "Dockerfile.dockerignore").read_text().split()
    assert patterns[0] == "*"
    sources = [source for *sources, _ in copied() for source in sources]
    assert {"requirements.txt", "configs", "kpod_jax"} < set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in patterns
    assert len(patterns) == len(sources) + 2  # Nothing is sent that is not copied.
    assert fnmatch.fnmatch("kpod_jax/__pycache__", patterns[-1])


@pytest.mark.parametrize(("target", "extra"), [("tpu", "tpu"), ("gpu", "cuda")])
def test_targets_install_what_the_package_names(target, extra):
    base, lines = stages()[target]
    assert base == "base"
    (install,) = [rest for key, rest in lines if key == "RUN"]
    wanted = [
        (ROOT / f"requirements-{name}.txt").read_text().splitlines()[-1] for name in (extra, "gcs")
    ]
    assert install == 'pip install -r requirements.txt "{}" "{}"'.format(*wanted)


@pytest.mark.parametrize("target", ["tpu", "gpu"])
def test_targets_start_the_module_as_a_plain_user(target):
    _, lines = stages()[target]
    last = dict(lines)
    assert last["ARG"] == "RUN_AS=kpod"
    assert last["USER"] == "${RUN_AS}"
    python, option, module = json.loads(last["ENTRYPOINT"])
    assert (python, option) == ("python", "-m")
    assert importlib.util.find_spec(module)
    # The module is found in the working directory, with the configuration files beside it.
    base = dict(stages()["base"][1])
    assert base["WORKDIR"] == "/app"
    assert ["configs", "/app/configs"] in copied()
    assert ["kpod_jax", "/app/kpod_jax"] in copied()
    assert last["COPY"] == "--from=code /app /app"


def test_code_that_changes_does_not_install_anew():
    for name in ("base", "tpu", "gpu"):
        keys = [
            "install" if "pip install" in rest else "code"
            for key, rest in stages()[name][1]
            if (key == "RUN" and "pip" in rest) or (key == "COPY" and "requirements" not in rest)
        ]
        assert keys == sorted(keys, key=["install", "code"].index)


def test_the_python_is_one_that_the_requirements_resolve_on():
    (version,) = [
        line.split("=")[1]
        for line in (FOLDER / "Dockerfile").read_text().splitlines()
        if line.startswith("ARG PYTHON=")
    ]
    assert version in ("3.11", "3.12", "3.13")
    assert stages()["base"][0] == "python:${PYTHON}-slim"
