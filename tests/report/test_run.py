import json

import numpy as np
import pytest

from kpod_jax.report import run as run_files
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from tests.report import workdirs


def test_a_line_cut_by_a_kill_is_left_out_and_others_are_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"text": "a\u2028b"}\n\n{"step":', encoding="utf-8")
    assert run_files.read_jsonl(path) == ({"step": 1}, {"text": "a\u2028b"})
    path.write_text('{"step": 1}\n{"step":\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is not valid JSON"):
        run_files.read_jsonl(path)
    path.write_text("[1]\n")
    with pytest.raises(UserError, match=r"is not a JSON object \(got list\)"):
        run_files.read_jsonl(path)


def test_no_directory(tmp_path):
    with pytest.raises(UserError, match="is not a directory"):
        run_files.load(tmp_path / "none")


def test_files_of_different_runs_are_refused(tmp_path):
    root = workdirs.build(tmp_path)
    path = root / "records" / "train.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"token_weights.npz in .* 12 examples.* has 11"):
        run_files.load(root)
    longer = json.loads(lines[0])
    longer["steps"].append("One more.")
    path.write_text(json.dumps(longer) + "\n" + "".join(lines[1:]))
    with pytest.raises(UserError, match="3 steps for record train-0, expected 4"):
        run_files.load(root)


def test_spans_of_other_tokens_are_refused(tmp_path):
    root = workdirs.build(tmp_path)
    files.write_npz(
        root / "token_spans.npz", values=np.zeros((12, 2), np.int32), offsets=np.arange(13)
    )
    with pytest.raises(UserError, match="do not have the same tokens"):
        run_files.load(root)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    root = workdirs.build(tmp_path)
    weights = files.read_npz(root / "token_weights.npz")
    weights["values"][3] = np.nan
    files.write_npz(root / "token_weights.npz", **weights)
    with pytest.raises(UserError, match="NaN or infinite"):
        run_files.load(root)
