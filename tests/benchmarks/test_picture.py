import subprocess
import sys

import pytest

from kpod_jax.sweep import comparison
from kpod_jax.utils import files
from tests.conftest import ROOT
from tests.report import workdirs
from tests.sweep.runs import config, write


def draw(*arguments):
    command = [sys.executable, "-m", "benchmarks.picture", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture
def sweep(tmp_path):
    right = {"kpod": "1110", "scotd": "1100"}
    runs = {name: write(tmp_path, name, config(name), marks) for name, marks in right.items()}
    result = comparison.compare("a.py", runs, tmp_path, {})
    assert result["shown"] == "kpod"
    workdirs.build(tmp_path / "kpod")
    files.write_json(tmp_path / "comparison.json", result)
    return tmp_path


def test_the_picture_is_drawn_from_a_sweep(sweep):
    output = sweep / "picture.png"
    done = draw(f"--sweep={sweep}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{output}\n"
    assert output.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_directory_without_a_comparison_is_turned_down(tmp_path):
    done = draw(f"--sweep={tmp_path}", f"--output={tmp_path / 'picture.png'}")
    assert done.returncode == 1
    assert "comparison.json" in done.stderr
    assert "Traceback" not in done.stderr
