"""The main job from outside: its stages, resuming after a kill, and what a user may get wrong."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
import orbax.checkpoint as ocp
import pytest

from benchmarks import exported
from configs import quickstart
from kpod_jax import pipeline, report
from kpod_jax.cli import checks
from kpod_jax.config import defaults
from kpod_jax.config.defaults import Config
from kpod_jax.evaluation import evaluate
from kpod_jax.models.student import load_student
from kpod_jax.parallel import processes, sharding
from kpod_jax.utils.errors import UserError
from tests.conftest import LLAMA_JSON, ROOT, TINY_STUDENT
from tests.tools import fingerprint

CONFIG = "--config=configs/quickstart.py"
KEYS = {
    **TINY_STUDENT,
    "data.train_examples": 40,
    "data.validation_examples": 8,
    "data.test_examples": 8,
    "distill.epochs": 4,
    "distill.batch_size": 8,
    "distill.buckets": 1,
    "distill.checkpoint_every": 2,
    "distill.log_every": 1,
    "eval.max_new_tokens": 8,
    # A stage is an epoch, and half of them have suffixes.
    "schedule.phase_steps": 0,
    "schedule.ramp_fraction": 0.5,
    # These tests are about the machinery; token weights have tests of their own.
    "weighting.weights": "uniform",
}
SMALL = tuple(f"--config.{key}={value}" for key, value in KEYS.items())


def small(method: str = "kpod", **changes: object) -> Config:
    """The configuration that SMALL makes, to be run in this process."""
    config = quickstart.get_config(method)
    config.update_from_flattened_dict(KEYS)
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    checks.check(config)
    return config


def command(workdir: pathlib.Path, *flags: str, config: str = CONFIG) -> list[str]:
    return [sys.executable, "-m", "kpod_jax.main", config, f"--workdir={workdir}", *flags]


def environment(tmp_path: pathlib.Path) -> dict[str, str]:
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TFDS_DATA_DIR": str(tmp_path / "tfds"),
        "HF_HUB_OFFLINE": "1",
    }


def run(workdir: pathlib.Path, *flags: str, config: str = CONFIG) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(workdir, *flags, config=config),
        cwd=ROOT,
        env=environment(workdir.parent),
        capture_output=True,
        text=True,
    )


def parameters(workdir: pathlib.Path, step: int) -> dict:
    path = (workdir / "checkpoints/student" / str(step) / "state").absolute()
    return ocp.PyTreeCheckpointer().restore(path)["params"]


class Finished(NamedTuple):
    """A whole run, what its process printed, and how long it took."""

    workdir: pathlib.Path
    process: subprocess.CompletedProcess
    seconds: float


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    workdir = tmp_path_factory.mktemp("pipeline") / "whole"
    began = time.monotonic()
    done = run(workdir, *SMALL)
    return Finished(workdir, done, time.monotonic() - began)


@pytest.fixture
def copy(finished, tmp_path, here) -> pathlib.Path:
    """A copy of its directory, to be worked on in this process."""
    shutil.copytree(finished.workdir, tmp_path / "copy")
    return tmp_path / "copy"


def test_all_stages_leave_their_files(finished):
    workdir, done, _ = finished
    assert done.returncode == 0, done.stderr
    for stage in ("rationales", "score", "schedule", "distill", "eval", "report"):
        assert f"\n{stage}: " in "\n" + done.stdout
    schedule = np.load(workdir / "schedule.npz")
    assert schedule["start_steps"].shape == (4, 40)
    assert (schedule["remaining"] <= schedule["target"]).all()
    assert not schedule["start_steps"][2:].any()
    results = json.loads((workdir / "results.json").read_text())
    assert results["total"] == 8
    assert results["checkpoint_step"] == 20
    rows = [json.loads(line) for line in (workdir / "predictions/test.jsonl").open()]
    assert sum(row["correct"] for row in rows) == results["correct"]
    steps = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    steps = [row for row in steps if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 21))
    assert sum(row["supervised_tokens"] for row in steps) == sum(supervised(workdir))
    assert "<html" in (workdir / "report.html").read_text()


def supervised(workdir: pathlib.Path) -> tuple[int, int]:
    results = json.loads((workdir / "results.json").read_text())
    return results["supervised_rationale_tokens"], results["supervised_answer_tokens"]


def test_plain_distillation_stops_at_as_many_rationale_tokens(finished, here, tmp_path, capsys):
    workdir = tmp_path / "equal"
    pipeline.run(small("scotd_equal_tokens"), workdir, siblings=[finished.workdir])
    said = capsys.readouterr().out
    assert "schedule: reused" in said and "score: reused" in said
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    rows = [row for row in rows if "loss" in row]
    assert all(row["mean_start_step"] == 0 for row in rows)
    assert all(row["loss"] == pytest.approx(row["token_loss"]) for row in rows)
    wanted, (rationale, answer) = supervised(finished.workdir)[0], supervised(workdir)
    assert sum(row["supervised_tokens"] for row in rows) == rationale + answer
    last = rows[-1]["supervised_tokens"]
    assert rationale - last < wanted <= rationale and len(rows) < 20
    # An epoch has five steps and every token.
    whole = json.loads((finished.workdir / "distill.json").read_text())
    assert answer < whole["supervised_answer_tokens"]


def test_a_second_run_does_nothing_again(finished, here, capsys):
    before = (finished.workdir / "checkpoints/student").stat().st_mtime_ns
    pipeline.run(small(), finished.workdir)
    said = capsys.readouterr().out
    for stage in ("rationales", "score", "schedule", "distill", "eval"):
        assert f"{stage}: up to date" in said
    assert (finished.workdir / "checkpoints/student").stat().st_mtime_ns == before


def test_up_to_date_is_a_run_whose_every_stage_is(finished, here):
    workdir = finished.workdir
    config = defaults.get_config()
    config.update(json.loads((workdir / "config.json").read_text())["config"])
    assert pipeline.up_to_date(config, workdir)
    for key, value in (("eval.split", "validation"), ("schedule.beta", 3.0), ("seed", 1)):
        other = defaults.get_config()
        other.update(config)
        other.update_from_flattened_dict({key: value})
        assert not pipeline.up_to_date(other, workdir), key
    assert not pipeline.up_to_date(config, workdir.parent / "new")


def test_the_checkpoint_of_a_step_is_evaluated_and_exported(copy):
    # As a run that was killed while it saved leaves it.
    (copy / "checkpoints/student/19.orbax-checkpoint-tmp").mkdir()
    pipeline.run(small(eval__checkpoint="18"), copy, "eval")
    assert json.loads((copy / "results.json").read_text())["checkpoint_step"] == 18
    with pytest.raises(UserError, match="no checkpoint for step 3"):
        pipeline.run(small(eval__checkpoint="3"), copy, "eval")
    pipeline.run(small(), copy, "export")
    assert (copy / "export/model.safetensors").is_file()
    student = load_student(str(copy / "export"), scan_layers=False)
    assert student.load(sharding.make_mesh())["shared"]["embedding"].shape[1] == 32


def test_an_export_is_made_again_where_what_it_tells_has_changed(copy, capsys):
    (copy / "results.json").rename(copy / "aside.json")
    pipeline.run(small(), copy, "export")
    assert "It was not evaluated." in (copy / "export/README.md").read_text()
    (copy / "aside.json").rename(copy / "results.json")
    pipeline.run(small(), copy, "export")
    assert "Accuracy on test" in (copy / "export/README.md").read_text()
    pipeline.run(small(), copy, "export")
    assert "export: up to date" in capsys.readouterr().out
    pipeline.run(small(eval__max_new_tokens=7), copy, "export")
    said = json.loads((copy / "export/generation_config.json").read_text())
    assert said["max_new_tokens"] == 7


def test_the_evaluation_reads_its_own_split(copy):
    (copy / "records/validation.jsonl").unlink()
    with pytest.raises(UserError, match=r"validation\.jsonl, which does not exist"):
        pipeline.run(small(eval__split="validation"), copy, "eval")


def test_an_export_answers_in_torch_as_its_run(copy, capsys):
    pipeline.run(small(), copy, "export")
    capsys.readouterr()
    exported.print_comparison(copy)
    assert "same generation: 8 of 8; same answer: 8 of 8" in capsys.readouterr().out


def test_other_data_sets_are_asked_in_the_evaluation(finished, copy, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    rows = [{"question": f"What is {i} + 2?", "answer": str(i + 2)} for i in (1, 2, 3)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small(
        eval__ood=("jsonl", "arithmetic"), eval__ood_paths=(str(folder), ""), eval__ood_examples=5
    )
    pipeline.run(config, copy, "eval")
    assert "jsonl_test accuracy" in capsys.readouterr().out
    results = json.loads((copy / "results.json").read_text())
    before = json.loads((finished.workdir / "results.json").read_text())
    assert {**results, "ood": {}} == before
    assert [results["ood"][name]["total"] for name in ("jsonl", "arithmetic")] == [3, 5]
    for name in ("jsonl", "arithmetic"):
        own = results["ood"][name]
        written = [json.loads(line) for line in (copy / f"predictions/{name}_test.jsonl").open()]
        assert len(written) == own["total"] and own["rejected"] == 0
        assert sum(row["correct"] for row in written) == own["correct"]
        assert own["interval"][0] <= own["accuracy"] <= own["interval"][1]
    lines = (copy / "predictions/jsonl_test.jsonl").open()
    assert [json.loads(line)["gold"] for line in lines] == ["3", "4", "5"]
    assert "data sets the student was not trained on" in report.write(copy).read_text()


def test_other_data_sets_are_read_anew_when_they_change_and_refused_by_kind(
    finished, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    config = quickstart.get_config()
    config.eval.ood, config.eval.ood_paths = ("jsonl",), (str(tmp_path),)
    rows = tmp_path / "test.jsonl"
    rows.write_text(json.dumps({"question": "Which?", "answer": "4"}) + "\n")
    before = fingerprint(config, finished.workdir, "eval")
    assert len(evaluate.read_ood_records(config)[0]["jsonl"]) == 1
    rows.write_text(json.dumps({"question": "Which?", "answer": "A"}) + "\n")
    assert fingerprint(config, finished.workdir, "eval") != before
    said = r"test\.jsonl:1 has the answer 'A', which is not a number; .*data\.answer_kind"
    with pytest.raises(UserError, match=said):
        evaluate.read_ood_records(config)


LEARNED = {
    "weighting__weights": "learned",
    "weighting__answerer": "",
    "weighting__fit": "other_fold",
    "weighting__min_gap": -100.0,
    "weighting__allow_failed": True,
    "weighting__fit_unmasked_steps": 1,
    "weighting__fit_masked_steps": 1,
    "weighting__steps": 1,
}


@pytest.mark.slow
def test_no_stage_reads_the_test_split_before_the_evaluation(here, tmp_path):
    """Every stage that makes or chooses a checkpoint runs without the test records."""
    workdir = tmp_path / "run"
    config = small(**LEARNED, distill__epochs=2, distill__validate_every=1)
    pipeline.run(config, workdir, "rationales")
    hidden = tmp_path / "test.jsonl"
    (workdir / "records/test.jsonl").rename(hidden)
    for mode in ("weigh", "score", "schedule", "distill"):
        pipeline.run(config, workdir, mode)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    assert sum("validation_accuracy" in row for row in rows) == 2
    with pytest.raises(UserError, match=r"records/test\.jsonl, which does not exist"):
        pipeline.run(config, workdir, "eval")
    hidden.rename(workdir / "records/test.jsonl")
    pipeline.run(config, workdir, "eval")
    assert json.loads((workdir / "results.json").read_text())["total"] == 8


def begin(workdir: pathlib.Path, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        command(workdir, *flags),
        cwd=ROOT,
        env=environment(workdir.parent),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def latest_checkpoint(workdir: pathlib.Path) -> int:
    found = (path.name for path in workdir.glob("checkpoints/student/[0-9]*"))
    return max((int(name) for name in found if name.isdecimal()), default=0)


def check_same_bits(one: pathlib.Path, other: pathlib.Path) -> None:
    """Parameters, losses and predictions of two finished runs of SMALL are equal."""
    flat = ocp.tree.to_flat_dict(parameters(one, 20))
    for path, value in ocp.tree.to_flat_dict(parameters(other, 20)).items():
        np.testing.assert_array_equal(value, flat[path], err_msg=str(path))
    lines = [
        [json.loads(line) for line in (directory / "metrics.jsonl").open()]
        for directory in (one, other)
    ]
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in lines]
    assert losses[0] == losses[1]
    assert supervised(one) == supervised(other)
    name = "predictions/test.jsonl"
    assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(finished, tmp_path):
    """Killed, then told to end, each after some checkpoints; then the same command again."""
    killed = tmp_path / "killed"
    for how, step in ((signal.SIGKILL, 4), (signal.SIGTERM, 8)):
        process = begin(killed, *SMALL)
        while process.poll() is None and latest_checkpoint(killed) < step:
            time.sleep(0.01)
        process.send_signal(how)
        _, said = process.communicate()
        if how == signal.SIGTERM:
            assert process.returncode == processes.EXIT_PREEMPTED, said
            assert f"Terminated: saved the student at step {latest_checkpoint(killed)}." in said
        else:
            assert process.returncode == -how, "it ended before it could be killed"
        assert not (killed / "results.json").exists()
    done = run(killed, *SMALL)
    assert done.returncode == 0, done.stderr
    check_same_bits(finished.workdir, killed)


@pytest.mark.slow
def test_chaos(finished, tmp_path):
    """Killed at random moments, again and again, it ends as if nothing had been.

    KPOD_CHAOS_KILLS is their number.
    """
    killed, rng = tmp_path / "killed", np.random.default_rng(0)
    kills = 0
    while kills < int(os.environ.get("KPOD_CHAOS_KILLS") or 4):
        process = begin(killed, *SMALL)
        try:
            process.wait(rng.uniform(0, finished.seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM if kills % 2 else signal.SIGKILL)
        _, said = process.communicate()
        if process.returncode == 0:  # It came to its end before, so there is nothing left to kill.
            check_same_bits(finished.workdir, killed)
            shutil.rmtree(killed)
            continue
        # Before the first line of its own, Python has not heard of SIGTERM.
        codes = (-signal.SIGKILL, -signal.SIGTERM, processes.EXIT_PREEMPTED)
        assert process.returncode in codes, said
        kills += 1
    assert run(killed, *SMALL).returncode == 0
    check_same_bits(finished.workdir, killed)


def test_a_directory_of_another_configuration_is_left_alone(finished, here):
    workdir = finished.workdir
    before = sorted(path.name for path in (workdir / "checkpoints/student").iterdir())
    with pytest.raises(UserError) as told:
        pipeline.run(small(distill__learning_rate=0.5), workdir, "distill")
    assert "another configuration" in str(told.value)
    rate = small().distill.learning_rate
    assert f"distill.learning_rate was {rate}, now 0.5" in str(told.value)
    assert sorted(path.name for path in (workdir / "checkpoints/student").iterdir()) == before


def test_a_curriculum_that_follows_the_student(finished, here, tmp_path, capsys):
    """Adaptive: the student's losses before each stage choose who takes part."""
    workdir, config = tmp_path / "acl", small("acl")
    pipeline.run(config, workdir, siblings=[finished.workdir])
    rows = np.load(workdir / "start_steps.npz")["start_steps"]
    assert rows.shape == (4, 40)
    shares = [int((row == 0).sum()) for row in rows]
    assert shares == [
        12,
        26,
        40,
        40,
    ]  # From initial_fraction=0.3 of the examples at stage 0 to all.
    assert "left out" in (workdir / "report.html").read_text()
    steps = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    assert sum(row.get("supervised_tokens", 0) for row in steps) == sum(supervised(workdir))
    capsys.readouterr()
    pipeline.run(config, workdir)
    assert "distill: up to date" in capsys.readouterr().out


def jsonl(tmp_path: pathlib.Path, train: str) -> dict[str, str]:
    good = json.dumps({"question": "1 + 1?", "rationale": "1 + 1 = 2.", "answer": "2"})
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text(train)
    (folder / "validation.jsonl").write_text(good.replace("1 + 1", "2 + 1") + "\n")
    (folder / "test.jsonl").write_text(good.replace("1 + 1", "3 + 1") + "\n")
    return {"data.name": "jsonl", "data.path": str(folder)}


GOOD = '{"question": "What is 1 + 1?", "rationale": "1 + 1 = 2.", "answer": "2"}\n'


# Values that are out of their range are told of by `configuration_checks`, which has its own tests.
def test_a_wrong_flag_is_one_message(tmp_path):
    done = run(tmp_path / "run", "--mode=rationales", "--config.distil.epochs=3")
    assert done.returncode == 2
    assert "did you mean 'distill.epochs'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keys", "train", "said"),
    [
        ({"student.model": "/nowhere"}, GOOD, "/nowhere"),
        ({}, GOOD + "{broken\n", "train.jsonl:2"),
        ({}, GOOD + GOOD.replace("1 + 1 = 2.", " "), "rationale"),
        ({"student.max_target_tokens": 10}, GOOD, "more than max_target_tokens=10"),
        ({}, GOOD.replace('"answer"', '"result"'), "answer"),
    ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, keys, train, said):
    monkeypatch.chdir(ROOT)
    config = quickstart.get_config()
    config.update_from_flattened_dict(jsonl(tmp_path, train) | keys)
    with pytest.raises(UserError, match=re.escape(said)):
        pipeline.run(config, tmp_path / "run", "rationales")


def test_questions_in_two_splits_are_told_with_their_ids(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    config = quickstart.get_config()
    train = GOOD + GOOD.replace("What is 1 + 1", " 3  + 1").replace("= 2", "= 4")
    config.update_from_flattened_dict(jsonl(tmp_path, train))
    pipeline.run(config, tmp_path / "run", "rationales")
    said = capsys.readouterr().out
    assert "1 questions of train are also in test: train-1 = test-0\n" in said
    assert "2 train, 1 validation, 1 test, 0 rejected" in said
    # Another file under the same name is another input.
    (tmp_path / "data/train.jsonl").write_text(GOOD)
    pipeline.run(config, tmp_path / "run", "rationales")
    said = capsys.readouterr().out
    assert "train.jsonl changed" in said and "1 train, 1 validation, 1 test, no question in" in said


def test_token_weights_need_rationales_for_validation(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = quickstart.get_config()
    config.update_from_flattened_dict(jsonl(tmp_path, GOOD) | {"weighting.fit": "other_fold"})
    bare = json.dumps({"question": "2 + 1?", "answer": "3"})
    (tmp_path / "data/validation.jsonl").write_text(bare)
    pipeline.run(config, tmp_path / "run", "rationales")
    with pytest.raises(UserError, match=r"no rationales .*weighting\.weights=uniform"):
        pipeline.run(config, tmp_path / "run", "weigh")


def test_a_student_without_weights_is_named(tmp_path):
    student = tmp_path / "student"
    shutil.copytree(ROOT / "kpod_jax/assets/tiny_t5", student)
    (student / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        load_student(str(student))


def test_a_stage_without_its_inputs_says_which(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"--mode=distill reads .* does not exist"):
        pipeline.run(quickstart.get_config(), tmp_path / "run", "distill")
    assert not (tmp_path / "run").exists()


def test_a_work_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot create the work directory"):
        pipeline.run(quickstart.get_config(), tmp_path / "file" / "run")


@pytest.mark.slow
def test_every_stage_runs_on_gsm8k_with_t5_base(tmp_path, shared_data):
    """The architecture and the tokenizer of T5-base, shrunk in depth alone, on real text."""
    architecture = json.loads((shared_data / "student_configs/flan_t5_base.json").read_text())
    architecture |= {"num_layers": 1, "num_decoder_layers": 1, "d_ff": 64, "d_model": 64}
    (tmp_path / "config.json").write_text(json.dumps(architecture))
    done = run(
        tmp_path / "run",
        f"--config.data.path={shared_data / 'gsm8k'}",
        f"--config.student.model={tmp_path / 'config.json'}",
        f"--config.student.tokenizer={shared_data / 'tokenizers/t5_spiece.model'}",
        "--config.student.init=random",
        "--config.data.train_examples=12",
        "--config.data.validation_examples=4",
        "--config.data.test_examples=4",
        "--config.weighting.min_gap=-100.0",
        "--config.weighting.allow_failed=True",
        "--config.weighting.fit_unmasked_steps=2",
        "--config.weighting.fit_masked_steps=2",
        "--config.weighting.steps=2",
        "--config.weighting.batch_size=4",
        "--config.distill.epochs=2",
        "--config.distill.batch_size=4",
        "--config.eval.max_new_tokens=4",
        f"--config.schedule.vectors={shared_data / 'glove/glove.6B.50d.subset.txt'}",
        config="--config=configs/t5_base.py",
    )
    assert done.returncode == 0, done.stderr
    for name in ("token_weights.npz", "step_difficulty.npz", "schedule.npz", "results.json"):
        assert (tmp_path / "run" / name).is_file()


@pytest.mark.slow
def test_every_stage_runs_with_a_decoder_only_student_and_int8_adapters(here, tmp_path):
    """Random weights of SmolLM2's architecture, made small; all stages, samples, and the export."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_JSON))
    config = small(
        **LEARNED,
        student__model=str(tmp_path / "config.json"),
        student__lora__rank=2,
        student__lora__targets=("all-linear",),
        student__lora__base_dtype="int8",
        distill__epochs=2,
        eval__temperature=1.0,
        eval__samples=2,
        export__lora="adapter",
    )
    pipeline.run(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/predictions/test.jsonl").open()]
    assert all(len(row["samples"]) == 2 for row in rows)
    # Nobody else has the random base of the adapter.
    with pytest.raises(UserError, match=r"student\.init=random.*export\.lora=merged"):
        pipeline.run(config, tmp_path / "run", "export")
    export = tmp_path / "run/export"
    config.export.lora = "merged"
    pipeline.run(config, tmp_path / "run", "export")
    names = {path.name for path in export.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} <= names
    assert "AutoModelForCausalLM" in (export / "README.md").read_text()
