import struct
from xml.etree import ElementTree

import pytest

from kpod_jax import report
from kpod_jax.sweep import comparison
from kpod_jax.utils.errors import UserError
from tests.report import workdirs
from tests.sweep.runs import config, write


def test_png_of_a_readmes_size(tmp_path):
    root = workdirs.build(tmp_path / "run")
    right = {"kpod": "1110", "scotd": "1100", "none": "0000"}
    runs = {name: write(tmp_path, name, config(name), marks) for name, marks in right.items()}
    result = comparison.compare("a.py", runs, tmp_path, {})
    path = report.readme_picture(root, tmp_path / "picture.png", result)
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24]) == (1200, 400)
    assert len(content) < 150_000


def test_svg_of_this_run_alone(tmp_path):
    root = workdirs.build(tmp_path / "run")
    path = report.readme_picture(root, tmp_path / "picture.svg")
    assert ElementTree.parse(path).getroot().tag.endswith("svg")
    first = path.read_bytes()
    assert b"<text" not in first  # No other font can move the words out of their boxes.
    assert report.readme_picture(root, path).read_bytes() == first


def test_what_is_missing_is_named(tmp_path):
    root = workdirs.build(tmp_path / "run")
    (root / "token_spans.npz").unlink()
    (root / "schedule.npz").unlink()
    with pytest.raises(UserError, match=r"lacks token_spans.npz, schedule.npz"):
        report.readme_picture(root, tmp_path / "picture.png")
    with pytest.raises(UserError, match=r"\.png or \.svg"):
        report.readme_picture(root, tmp_path / "picture.jpg")
