"""Whole runs of the methods on the built-in task, and what makes their students stale."""

import json
import math
import os
import pathlib
import re
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import quickstart
from kpod_jax import baselines, pipeline
from kpod_jax.cli import checks
from kpod_jax.data import arithmetic
from kpod_jax.data.prepare import prepare_data
from kpod_jax.distillation import batch_source
from kpod_jax.models.student import load_student
from kpod_jax.stages import STAGES
from kpod_jax.utils.errors import UserError
from tests.conftest import ROOT, TINY_STUDENT
from tests.tools import fingerprint

OWN = "examples.last_step:LastStep"
SMALL = {
    **TINY_STUDENT,
    "data.train_examples": 16,
    "data.validation_examples": 4,
    "data.test_examples": 4,
    "distill.epochs": 1,
    "distill.batch_size": 8,
    "distill.buckets": 1,
    "distill.log_every": 1,
    "distill.checkpoint_every": 1,
    "distill.max_to_keep": 9,
    "eval.max_new_tokens": 4,
}


def config_of(method, **changes):
    config = quickstart.get_config(method)
    config.update_from_flattened_dict(SMALL | {k.replace("__", "."): v for k, v in changes.items()})
    checks.check(config)
    return config


def prompt_of(config):
    return baselines.prompt_of(config, load_student(config.student))


@pytest.fixture
def at_home(tmp_path_factory, monkeypatch):
    """In the repository, as its configurations expect; data sets are prepared once."""
    monkeypatch.chdir(ROOT)
    path = tmp_path_factory.getbasetemp() / "tfds"
    monkeypatch.setitem(os.environ, "TFDS_DATA_DIR", str(path))


def parameters(workdir: pathlib.Path, step: int):
    return ocp.PyTreeCheckpointer().restore(workdir / f"checkpoints/student/{step}/state")["params"]


# The one with most of its own is tried each time.
SLOW = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in (*baselines.METHODS, OWN)
    if name != "mcc_kd"
]


@pytest.mark.parametrize("method", ["mcc_kd", *SLOW])
def test_a_whole_run_of_each_method(at_home, tmp_path, method, capsys):
    config = config_of(method)
    workdir = pipeline.run(config, tmp_path / "run")
    results = json.loads((workdir / "results.json").read_text())
    assert (results["method"], results["total"]) == (method, 4)
    said = capsys.readouterr().out
    assert "distill: examples: " in said
    if method == "scott":
        assert "contrastive decoding needs the teacher's logits" in said
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    losses = [row["loss"] for row in rows if "loss" in row]
    last = len(losses)
    assert np.isfinite(losses).all() and results["checkpoint_step"] == last > 1
    assert "<html" in (workdir / "report.html").read_text()

    # Killed after the first step it goes on to the same bits.
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    for step in range(2, last + 1):
        shutil.rmtree(again / f"checkpoints/student/{step}")
    note = again / ".stages/distill.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"complete": False}))
    pipeline.run(config, again, "distill")
    expected, found = parameters(workdir, last), parameters(again, last)
    jax.tree.map(np.testing.assert_array_equal, expected, found)

    # It is exported with the prompt that it is asked by.
    pipeline.run(config, workdir, "export")
    card = (workdir / "export/README.md").read_text()
    assert prompt_of(config) in card


def test_mcc_kds_control_has_its_batches_and_no_divergence(at_home):
    records = [
        r
        for record in arithmetic.generate("train", 16)
        for r in arithmetic.rationales_per_question(record, 5)
    ]
    config = config_of("mcc_kd")
    student = load_student(config.student)
    data = prepare_data({"train": records}, student)
    sets = [
        baselines.make_training_set(baselines.method_of(config_of(name), student), student, data)
        for name in ("mcc_kd", "mcc_kd_control")
    ]
    one, other = (batch_source(config.distill, student, training) for training in sets)
    assert one.steps_per_epoch == other.steps_per_epoch
    for step in range(2 * one.steps_per_epoch):
        jax.tree.map(np.testing.assert_array_equal, one[step], other[step])
    weights: Any = [training.objective.loss for training in sets]
    weights = [loss.keywords["weight"] for loss in weights]
    assert weights[0] > 0 == weights[1]


@pytest.mark.slow
def test_a_whole_run_with_a_teachers_distributions(at_home, tmp_path, capsys):
    """The teacher's tokens are words; half of its mass is on others, for half of the records."""
    rows = []
    for record in arithmetic.generate("train", 8):
        tokens = re.findall(r"\s*\S+", record.rationale)
        tops = [{token: math.log(0.5), " pens": math.log(0.25)} for token in tokens]
        row = {"question": record.question, "rationale": record.rationale}
        rows.append(row | {"tokens": tokens, "top_logprobs": tops})
    path = tmp_path / "distributions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    formats = ("zero_shot_answer_only", "zero_shot_chain_of_thought")
    config = config_of(
        "specialized_kd", baseline__distributions=str(path), baseline__formats=formats
    )
    workdir = pipeline.run(config, tmp_path / "run")
    said = capsys.readouterr().out
    assert "distributions for 8 of 16 rationales and " in said and "does not provide" not in said
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    losses = [row["loss"] for row in found if "loss" in row]
    assert np.isfinite(losses).all() and min(losses) > 0


def test_a_changed_method_never_takes_anothers_student(at_home, tmp_path):
    (tmp_path / "records").mkdir()
    for name in STAGES["rationales"].outputs:
        (tmp_path / name).write_text("")

    def distilled(config):
        return fingerprint(config, tmp_path, "distill")

    found = {name: distilled(config_of(name)) for name in ("scotd", *baselines.METHODS, OWN)}
    texts = [json.dumps(fingerprint, sort_keys=True) for fingerprint in found.values()]
    assert len(set(texts)) == len(found)
    # Keys of other methods change nothing, those of its own do.
    assert distilled(config_of("scott", baseline__ngram=2)) == found["scott"]
    assert distilled(config_of("scott", baseline__counterfactual_weight=0.1)) != found["scott"]
    assert distilled(config_of("scotd", baseline__ngram=2)) == found["scotd"]
    assert not any("baseline" in key or key == "method" for key in found["scotd"])
    assert any(key.endswith("last_step.py") for key in found[OWN])
    # A file that a method reads is part of it.
    path = tmp_path / "counterfactuals.jsonl"
    path.write_text("{}\n")
    one = distilled(config_of("scott", baseline__counterfactuals=str(path)))
    path.write_text("{ }\n")
    other = distilled(config_of("scott", baseline__counterfactuals=str(path)))
    assert one != other != found["scott"]


def test_a_student_is_asked_in_the_form_that_it_was_trained_on(at_home, tmp_path):
    asked = {name: prompt_of(config_of(name)) for name in ("scotd", *baselines.METHODS, OWN)}
    thinking = "Q: {question} A: Let's think step by step."
    direct = "Q: {question} A: Let's answer directly."
    assert asked == {
        "scotd": thinking,
        "answer_only": direct,
        "specialized_kd": thinking,
        "scott": "[factual] " + thinking,
        "mcc_kd": thinking,
        "mcc_kd_control": thinking,
        "distilling_step_by_step": "[label] " + direct,
        OWN: thinking,
    }


def test_losses_that_look_at_places_are_not_for_rows_whose_places_move(at_home):
    with pytest.raises(UserError, match="expected 'decoder' for mcc_kd"):
        config_of("mcc_kd", distill__input_steps="encoder")
