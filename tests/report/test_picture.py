import struct
from xml.etree import ElementTree

import pytest

from kpod_jax import report
from kpod_jax.errors import UserError
from tests.report import workdirs


def test_png_of_a_readmes_size(tmp_path):
    root = workdirs.build(tmp_path / "run")
    rows = [workdirs.results(name, 0, n) for name, n in (("kpod", 31), ("scotd", 20), ("none", 3))]
    path = report.readme_picture(root, tmp_path / "picture.png", rows)
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
