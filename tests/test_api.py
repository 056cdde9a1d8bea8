"""The Python API: what it offers, that it is light, and that each function works alone."""

import os
import pathlib
import runpy
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

import kpod_jax as kpod
from tests.conftest import ROOT, TINY_STUDENT
from tests.test_pipeline import KEYS

SHORT = {key.replace(".", "__"): value for key, value in KEYS.items()} | {
    "data__train_examples": 12,
    "data__validation_examples": 4,
    "data__test_examples": 4,
    "distill__epochs": 2,
    "weighting__weights": "learned",
    "weighting__steps": 2,
    "weighting__eval_examples": 4,
    "weighting__allow_failed": True,
    "weighting__min_gap": -100.0,
    # The student is its own answerer.
    "weighting__answerer": "",
    "weighting__fit": "same",
    "weighting__fit_unmasked_steps": 1,
    **{key.replace(".", "__"): value for key, value in TINY_STUDENT.items()},
}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The quickstart's configuration, student and data, small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("tfds")))
        config = kpod.load_config("configs/quickstart.py", **SHORT)
        student = kpod.load_student(config.student)
        return config, student, kpod.prepare_data(config.data, student)


def test_importing_it_is_light_and_its_names_are_there_in_any_folder(tmp_path):
    code = (
        "import sys, kpod_jax as kpod\n"
        "heavy = {'jax', 'numpy', 'transformers', 'orbax', 'flax'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "assert 'distill' in dir(kpod)\n"
        "[getattr(kpod, name) for name in kpod.__all__]\n"
        "kpod.load_student(kpod.load_config('configs/quickstart.py').student)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = kpod.distil  # pyright: ignore[reportAttributeAccessIssue]


def test_weights_and_a_schedule_of_ones_own_are_plain_arrays(short):
    config, student, data = short
    ones = [np.ones(n) for n in data.train.rationale_lengths]
    whole = np.zeros((1, len(data.train)), int)
    runs = [
        kpod.distill(config.distill, student, data),
        kpod.distill(config.distill, student, data, ones, whole),
    ]
    one, other = (jax.tree.leaves(run.params) for run in runs)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
    last = np.stack([data.train.num_steps - 1, 0 * data.train.num_steps])
    assert runs[0].supervised is not None
    suffixes = kpod.distill(config.distill, student, data, ones, last).supervised
    name = "supervised_rationale_tokens"
    assert suffixes is not None and suffixes[name] < runs[0].supervised[name]


def test_your_records_and_your_model(tmp_path):
    rows = [f'{{"question": "{i} + 2?", "rationale": "{i} + 2 = {i + 2}.", "answer": "{i + 2}"}}'
            for i in range(8)]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    for name in ("validation", "test"):  # So that nothing is held out of train.
        (tmp_path / f"{name}.jsonl").touch()
    records, rejected = kpod.load_records("jsonl", path=str(tmp_path))
    assert (len(records), rejected) == (8, [])
    tiny: Any = {key.removeprefix("student."): value for key, value in TINY_STUDENT.items()}
    student = kpod.load_student(tiny.pop("model"), **tiny)
    data = kpod.prepare_data({"train": records[:6], "validation": records[6:]}, student)
    config = kpod.load_config(**{k: v for k, v in SHORT.items() if k.startswith("weighting")})
    config.weighting.update({"fit": "same", "fit_unmasked_steps": 1, "fit_masked_steps": 0})
    weights = kpod.learn_token_weights(config.weighting, student, data)
    assert [len(w) for w in weights] == data.train.rationale_lengths.tolist()
    difficulty = kpod.score_steps(config.difficulty, student, data, list(weights))
    assert (difficulty.lengths == data.train.num_steps).all()
    html = kpod.heat_map(data, weights)._repr_html_()
    assert "style=" in html and records[0].question in html and "<script" not in html
    params = student.load(kpod.make_mesh())
    assert not kpod.export(student, params, tmp_path / "export")
    texts = kpod.generate(student, params, ["1 + 1?", "2 + 2?"], batch_size=8, max_new_tokens=3)
    assert len(texts) == 2


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: kpod.load_config(distil__epochs=3), "No such configuration key: 'distil.epochs'"),
        (lambda: kpod.load_config("nowhere.py"), "config=nowhere.py: no such Python file"),
        (lambda: kpod.load_student("kpod_jax/assets/tiny_t5", dtyp="x"), "setting 'dtyp'"),
        (lambda: kpod.load_records("jsonl", folder="x"), "setting 'folder'"),
    ],
)
def test_what_is_wrong_is_told(call, said):
    with pytest.raises(kpod.UserError, match=said):
        call()


def test_the_notebook_runs(short, monkeypatch, capsys):
    config, *_ = short
    monkeypatch.setattr(kpod, "load_config", lambda name: config, raising=False)
    monkeypatch.chdir(ROOT)
    found = runpy.run_path(str(ROOT / "examples/notebook.py"))
    assert found["result"].summary["total"] == 4
    assert "token weights" in capsys.readouterr().out


def test_a_stage_of_a_run(short, tmp_path):
    path = kpod.run(short[0], tmp_path / "run", mode="rationales")
    assert isinstance(path, pathlib.Path)
    again = kpod.load_config(path)
    assert again.to_dict() == short[0].to_dict()
