import re
import struct
import subprocess
import sys

import numpy as np
import pytest

from kpod_jax import report
from kpod_jax.data.records import Record
from kpod_jax.report import colours, terminal
from kpod_jax.utils.errors import UserError
from tests.conftest import ROOT
from tests.report import workdirs


def test_page_picture_and_terminal_show_the_training_rationales(tmp_path):
    root = workdirs.build(tmp_path / "run")
    page, picture, shown = report.heat_map(root)
    html = page.read_text()
    assert html.count("<article") == len(workdirs.records())
    assert "weight 0" in html and html.count("<script") == 1
    content = picture.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", content[16:24])[0] == 1000
    assert shown.startswith("train-0: Anna has 3 bags")
    assert "\x1b" not in shown  # Tests have no terminal.
    assert re.search(r"times:\d", shown)


def test_the_records_asked_for_are_shown(tmp_path):
    root = workdirs.build(tmp_path / "run")
    page, _, shown = report.heat_map(root, ["train-7", "train-2"])
    assert re.findall(r"<code>(train-\d+)</code>", page.read_text()) == ["train-7", "train-2"]
    assert shown.startswith("train-7: ")
    with pytest.raises(UserError, match=r"No training record 'train-99'.*the first is 'train-0'"):
        report.heat_map(root, ["train-99"])


def test_without_learned_weights_there_is_nothing_to_show(tmp_path):
    root = workdirs.build(tmp_path / "run")
    (root / "token_weights.npz").unlink()
    with pytest.raises(UserError, match=r"no learned token weights.*--mode=weigh"):
        report.heat_map(root)


def test_a_terminal_gets_the_heat_maps_colours_and_no_other_control_characters():
    record = Record("a", "How\x1b[2J?", ("He has \x07 twice.",), "1\x1b")
    spans, weights = np.array([[0, 2], [3, 6], [9, 14]]), np.array([0.0, 0.5, 1.0])
    shown = terminal.heat_map(record, spans, weights, colours=True)
    ground, ink = colours.heat(1.0)
    numbers = [";".join(str(int(c[i : i + 2], 16)) for i in (1, 3, 5)) for c in (ground, ink)]
    assert f"\x1b[48;2;{numbers[0]};38;2;{numbers[1]}mtwice\x1b[0m" in shown
    rest = re.sub(r"\x1b\[(0|48;2;\d+;\d+;\d+;38;2;\d+;\d+;\d+)m", "", shown)
    assert "\x1b" not in rest and "\x07" not in rest
    plain = terminal.heat_map(record, spans, weights, colours=False)
    assert r"He:0 has:5 \x07 twice:9." in plain


def test_the_command_needs_a_work_directory_alone(tmp_path):
    root = workdirs.build(tmp_path / "run")

    job = [sys.executable, "-m", "kpod_jax.main", "--mode=heatmap", f"--workdir={root}"]
    job += ["--records=train-3"]
    done = subprocess.run(job, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("train-3: ")
    assert done.stdout.split()[-2:] == [str(root / "heatmap.html"), str(root / "heatmap.png")]
    with pytest.raises(UserError, match="No training record 'other'"):
        report.heat_map(root, ["other"])
