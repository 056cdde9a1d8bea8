"""What a fresh clone can do: its Makefile and its packaging."""

import fnmatch
import os
import pathlib
import re
import shutil
import subprocess
import tomllib

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*arguments: str, cwd: pathlib.Path = ROOT, **environment: str):
    # The tests may run inside `make test`: this make must not know of that one.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments],
        cwd=cwd,
        env={**outside, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def clone(tmp_path):
    """The files from which the environment is made, in a folder of their own."""
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_make_alone_lists_the_targets():
    listed = re.findall(r"^ *make ([\w-]+)", make().stdout, re.MULTILINE)
    assert listed == "help quickstart test test-slow lint format docs clean".split()


def test_without_a_fitting_python_says_what_is_needed(clone):
    result = make("test", cwd=clone, PYTHON="false")
    assert result.returncode != 0
    assert "No Python 3.11 or newer" in result.stderr
    assert "PYTHON=/path/to/python" in result.stderr
    assert not (clone / ".venv").exists()


def test_installs_once_and_again_when_the_requirements_change(clone):
    installs = "install .*-r requirements"
    (clone / ".venv").mkdir()
    for time, stamp in enumerate([".made", ".run", ".dev"]):
        (clone / ".venv" / stamp).touch()
        os.utime(clone / ".venv" / stamp, (2e9 + time, 2e9 + time))
    for target in ("test", "quickstart"):
        assert not re.search(installs, make("-n", target, cwd=clone).stdout)
    os.utime(clone / "requirements-dev.txt", (2e9 + 9, 2e9 + 9))
    assert re.search(installs, make("-n", "test", cwd=clone).stdout)
    assert not re.search(installs, make("-n", "quickstart", cwd=clone).stdout)
    os.utime(clone / "requirements.txt", (2e9 + 9, 2e9 + 9))
    assert re.search(installs, make("-n", "quickstart", cwd=clone).stdout)


def test_the_newest_python_that_fits_is_taken(clone):
    folder = clone / "bin"
    folder.mkdir()
    # The newest is there, but lacks a module, as Debian's may.
    for name, code in (("python3", 0), ("python3.11", 0), ("python3.12", 0), ("python3.13", 1)):
        (folder / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (folder / name).chmod(0o755)
    said = make(".venv/.made", cwd=clone, PATH=f"{folder}:{os.environ['PATH']}").stdout
    assert "(python3.12)" in said


def test_the_package_itself_is_installed_to_be_imported_from_any_folder(clone):
    for target in ("quickstart", "test"):
        lines = make("-n", target, cwd=clone).stdout.splitlines()
        requirements = next(i for i, line in enumerate(lines) if "-r requirements.txt" in line)
        package = next(i for i, line in enumerate(lines) if "--no-deps --editable ." in line)
        use = next(i for i, line in enumerate(lines) if re.search("kpod_jax.main|pytest", line))
        assert requirements < package < use


def test_the_short_quickstart_has_a_work_directory_of_its_own():
    short = " ".join(make("-n", "quickstart", SHORT="1").stdout.replace("\\\n", "").split())
    assert "--mode=sweep --workdir=runs/quickstart-short" in short
    assert "--sweep=configs/sweeps/quickstart.py:short" in short
    long = make("-n", "quickstart", SHORT="").stdout
    assert ":short" not in long
    assert "runs/quickstart " in long


def test_a_wheel_holds_every_file_of_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["kpod_jax"]
    data = [
        path.relative_to(ROOT / "kpod_jax").as_posix()
        for path in (ROOT / "kpod_jax").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    held = [
        name
        for name in data
        if any(fnmatch.fnmatch(name, pattern.replace("**/", "*")) for pattern in patterns)
    ]
    assert held == data
    assert set(settings["packages"]["find"]["include"]) == {"kpod_jax*"}
