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

import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import quickstart
from kpod_jax import configuration, pipeline, processes, report, sharding
from kpod_jax.errors import UserError
from kpod_jax.models.student import load_student
from kpod_jax.run import Run
from kpod_jax.stages import evaluation
from kpod_jax.workdir import Workdir
from tests.conftest import LLAMA_JSON, ROOT

CONFIG = "--config=configs/quickstart.py"
SMALL = (
    "--config.data.train_examples=40",
    "--config.data.validation_examples=8",
    "--config.data.test_examples=8",
    "--config.distill.epochs=4",
    "--config.distill.batch_size=8",
    "--config.distill.buckets=1",
    "--config.distill.checkpoint_every=2",
    "--config.distill.log_every=1",
    "--config.eval.max_new_tokens=8",
    # These tests are about the machinery; token weights have tests of their own.
    "--config.weighting.weights=uniform",
)


def command(workdir: pathlib.Path, *flags: str, config: str = CONFIG) -> list[str]:
    return [sys.executable, "-m", "kpod_jax.main", config, f"--workdir={workdir}", *flags]


def environment(tmp_path: pathlib.Path) -> dict[str, str]:
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TFDS_DATA_DIR": str(tmp_path / "tfds"),
        "XDG_CACHE_HOME": str(tmp_path.parent / "cache"),  # Compiled steps, for all tests here.
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[pathlib.Path, subprocess.CompletedProcess]:
    """A whole run."""
    workdir = tmp_path_factory.mktemp("pipeline") / "whole"
    return workdir, run(workdir, *SMALL)


def test_all_stages_leave_their_files(finished):
    workdir, done = finished
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
    assert [row["step"] for row in steps if "loss" in row] == list(range(1, 21))
    assert "<html" in (workdir / "report.html").read_text()


def test_a_second_run_does_nothing_again(finished):
    workdir, _ = finished
    before = (workdir / "checkpoints/student").stat().st_mtime_ns
    done = run(workdir, *SMALL)
    assert done.returncode == 0, done.stderr
    for stage in ("rationales", "score", "schedule", "distill", "eval"):
        assert f"{stage}: up to date" in done.stdout
    assert (workdir / "checkpoints/student").stat().st_mtime_ns == before


def test_up_to_date_is_a_run_whose_every_stage_is(finished, monkeypatch):
    workdir, _ = finished
    monkeypatch.chdir(ROOT)  # Where the run began: its student's path is relative.
    config = configuration.default()
    config.update(json.loads((workdir / "config.json").read_text())["config"])
    assert pipeline.up_to_date(config, workdir)
    for key, value in (("eval.split", "validation"), ("schedule.beta", 3.0), ("seed", 1)):
        other = configuration.default()
        other.update(config)
        other.update_from_flattened_dict({key: value})
        assert not pipeline.up_to_date(other, workdir), key
    assert not pipeline.up_to_date(config, workdir.parent / "new")


def test_the_checkpoint_of_a_step_is_evaluated_and_exported(finished, tmp_path):
    workdir, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    done = run(copy, *SMALL, "--mode=eval", "--config.eval.checkpoint=18")
    assert done.returncode == 0, done.stderr
    assert json.loads((copy / "results.json").read_text())["checkpoint_step"] == 18
    done = run(copy, *SMALL, "--mode=eval", "--config.eval.checkpoint=3")
    assert done.returncode == 2
    assert "no checkpoint of step 3" in done.stderr
    done = run(copy, *SMALL, "--mode=export")
    assert done.returncode == 0, done.stderr
    assert (copy / "export/model.safetensors").is_file()
    student = load_student(str(copy / "export"), scan_layers=False)
    assert student.load(sharding.make_mesh())["shared"]["embedding"].shape[1] == 128


def test_other_data_sets_are_asked_in_the_evaluation(finished, tmp_path):
    workdir, _ = finished
    copy, folder = tmp_path / "copy", tmp_path / "mine"
    shutil.copytree(workdir, copy)
    folder.mkdir()
    rows = [{"question": f"What is {i} + 2?", "answer": str(i + 2)} for i in (1, 2, 3)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = (
        "--config.eval.ood=('jsonl','arithmetic')",
        f"--config.eval.ood_paths=('{folder}','')",
        "--config.eval.ood_examples=5",
    )
    done = run(copy, *SMALL, *flags, "--mode=eval")
    assert done.returncode == 0, done.stderr
    assert "jsonl_test accuracy" in done.stdout
    results = json.loads((copy / "results.json").read_text())
    before = json.loads((workdir / "results.json").read_text())
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
    assert "that the student was not trained on" in report.write(copy).read_text()


def test_other_data_sets_are_read_anew_when_they_change_and_refused_by_kind(
    finished, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    config = quickstart.get_config()
    config.eval.ood, config.eval.ood_paths = ("jsonl",), (str(tmp_path),)
    rows = tmp_path / "test.jsonl"
    rows.write_text(json.dumps({"question": "Which?", "answer": "4"}) + "\n")
    current = Run(config, Workdir(finished[0]))
    before = pipeline._fingerprint(current, "eval")
    assert len(evaluation._ood_records(current, "jsonl", str(tmp_path))[0]) == 1
    rows.write_text(json.dumps({"question": "Which?", "answer": "A"}) + "\n")
    assert pipeline._fingerprint(current, "eval") != before
    said = "record test-0 has the answer 'A', which is none of data.answer_kind='number'"
    with pytest.raises(UserError, match=said):
        evaluation._ood_records(current, "jsonl", str(tmp_path))


LEARNED = (
    "--config.weighting.weights=learned",
    "--config.weighting.answerer=",
    "--config.weighting.fit=other_fold",
    "--config.weighting.min_gap=-100.0",
    "--config.weighting.reading_steps=1",
    "--config.weighting.masking_steps=1",
    "--config.weighting.steps=1",
)


def test_training_does_not_read_the_test_split(finished, tmp_path):
    workdir, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints/student")
    (copy / "records/test.jsonl").unlink()
    done = run(copy, *SMALL, "--mode=distill")
    assert done.returncode == 0, done.stderr
    assert (copy / "checkpoints/student/20").is_dir()
    done = run(copy, *SMALL, "--mode=eval")
    assert done.returncode == 2 and "records/test.jsonl, which is not there" in done.stderr


@pytest.mark.slow
def test_no_stage_reads_the_test_split_before_the_evaluation(tmp_path):
    """Every stage that makes or chooses a checkpoint runs without the test records."""
    workdir = tmp_path / "run"
    flags = (*SMALL, *LEARNED, "--config.distill.epochs=2", "--config.distill.validate_every=1")
    done = run(workdir, *flags, "--mode=rationales")
    assert done.returncode == 0, done.stderr
    hidden = tmp_path / "test.jsonl"
    (workdir / "records/test.jsonl").rename(hidden)
    for mode in ("weigh", "score", "schedule", "distill"):
        done = run(workdir, *flags, f"--mode={mode}")
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    assert sum("validation_accuracy" in row for row in rows) == 2
    done = run(workdir, *flags, "--mode=eval")
    assert done.returncode == 2 and "records/test.jsonl, which is not there" in done.stderr
    hidden.rename(workdir / "records/test.jsonl")
    done = run(workdir, *flags, "--mode=eval")
    assert done.returncode == 0, done.stderr
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
    name = "predictions/test.jsonl"
    assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_ends_with_the_same_bits(finished, tmp_path, how):
    """Killed, or told to end, after the first checkpoints; then the same command again."""
    workdir, _ = finished
    killed = tmp_path / "killed"
    process = begin(killed, *SMALL)
    while process.poll() is None and latest_checkpoint(killed) < 4:
        time.sleep(0.01)
    process.send_signal(how)
    _, said = process.communicate()
    if how == signal.SIGTERM:
        assert process.returncode == processes.EXIT_PREEMPTED, said
        assert f"Told to end: saved the student of step {latest_checkpoint(killed)}." in said
    else:
        assert process.returncode == -how, "it ended before it could be killed"
    assert not (killed / "results.json").exists()
    done = run(killed, *SMALL)
    assert done.returncode == 0, done.stderr
    check_same_bits(workdir, killed)


@pytest.mark.slow
def test_chaos(finished, tmp_path):
    """Killed at random moments, again and again, it ends as if nothing had been.

    KPOD_CHAOS_KILLS is their number.
    """
    workdir, _ = finished
    killed, rng = tmp_path / "killed", np.random.default_rng(0)
    seconds = time.monotonic()
    assert run(tmp_path / "timed", *SMALL).returncode == 0
    seconds = time.monotonic() - seconds
    kills = 0
    while kills < int(os.environ.get("KPOD_CHAOS_KILLS") or 4):
        process = begin(killed, *SMALL)
        try:
            process.wait(rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM if kills % 2 else signal.SIGKILL)
        _, said = process.communicate()
        if process.returncode == 0:  # It came to its end before, so there is nothing left to kill.
            check_same_bits(workdir, killed)
            shutil.rmtree(killed)
            continue
        # Before the first line of its own, Python has not heard of SIGTERM.
        codes = (-signal.SIGKILL, -signal.SIGTERM, processes.EXIT_PREEMPTED)
        assert process.returncode in codes, said
        kills += 1
    assert run(killed, *SMALL).returncode == 0
    check_same_bits(workdir, killed)


def test_a_directory_of_another_configuration_is_left_alone(finished):
    workdir, _ = finished
    before = sorted(path.name for path in (workdir / "checkpoints/student").iterdir())
    done = run(workdir, *SMALL, "--config.distill.learning_rate=0.5", "--mode=distill")
    assert done.returncode == 2
    assert "another configuration" in done.stderr
    assert "distill.learning_rate was 0.002 and is 0.5" in done.stderr
    assert sorted(path.name for path in (workdir / "checkpoints/student").iterdir()) == before


def test_a_curriculum_that_follows_the_student(finished, tmp_path):
    """Adaptive: the student's losses before each stage choose who takes part."""
    workdir = tmp_path / "acl"
    done = run(workdir, *SMALL, config=f"{CONFIG}:acl")
    assert done.returncode == 0, done.stderr
    rows = np.load(workdir / "start_steps.npz")["start_steps"]
    assert rows.shape == (4, 40)
    shares = [int((row == 0).sum()) for row in rows]
    assert shares == [12, 26, 40, 40]  # From initial_share=0.3 of the examples at stage 0 to all.
    assert "left out" in (workdir / "report.html").read_text()
    done = run(workdir, *SMALL, config=f"{CONFIG}:acl")
    assert "distill: up to date" in done.stdout


def test_the_documents_own_curriculum(finished, tmp_path):
    workdir, _ = finished
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    page = (ROOT / "docs/schedule.md").read_text()
    (tmp_path / "my_file.py").write_text(page.split("```python\n")[1].split("```")[0])
    flag = "--config.schedule.curriculum=my_file:LongestFirst"
    done = subprocess.run(
        command(copy, *SMALL, flag, "--mode=schedule"),
        cwd=ROOT,
        env=environment(tmp_path) | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    sizes = np.diff(np.load(copy / "step_difficulty.npz")["offsets"])
    rows = np.load(copy / "schedule.npz")["start_steps"]
    moved = rows[0] - rows[1] > 0
    assert rows[0].tolist() == sizes.tolist() and (moved == (sizes == sizes.max())).all()
    done = run(copy, *SMALL, "--config.schedule.curriculum=nowhere:Mine", "--mode=schedule")
    assert done.returncode == 2 and "cannot be imported" in done.stderr


def jsonl(tmp_path: pathlib.Path, train: str) -> dict[str, str]:
    good = json.dumps({"question": "1 + 1?", "rationale": "1 + 1 = 2.", "answer": "2"})
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text(train)
    (folder / "validation.jsonl").write_text(good.replace("1 + 1", "2 + 1") + "\n")
    (folder / "test.jsonl").write_text(good.replace("1 + 1", "3 + 1") + "\n")
    return {"data.name": "jsonl", "data.path": str(folder)}


GOOD = '{"question": "What is 1 + 1?", "rationale": "1 + 1 = 2.", "answer": "2"}\n'


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.distil.epochs=3", 'Did you mean "distill"'),
        ("--config.distill.epochs=-3", "distill.epochs=-3: expected at least 0"),
    ],
)
def test_a_wrong_flag_is_one_message(tmp_path, flag, said):
    done = run(tmp_path / "run", "--mode=rationales", flag)
    assert done.returncode == 2
    assert said in done.stderr
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
    with pytest.raises(UserError, match=r"train\.jsonl, which is not there"):
        pipeline.run(quickstart.get_config(), tmp_path / "run", "distill")


def test_a_work_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot make the work directory"):
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
        "--config.weighting.reading_steps=2",
        "--config.weighting.masking_steps=2",
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
def test_every_stage_runs_with_a_decoder_only_student_and_int8_adapters(tmp_path):
    """Random weights of SmolLM2's architecture, made small; all stages, samples, and the export."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_JSON))
    flags = (
        *SMALL,
        f"--config.student.model={tmp_path / 'config.json'}",
        "--config.student.tokenizer=kpod_jax/assets/tiny_t5",
        "--config.student.init=random",
        "--config.student.lora.rank=2",
        "--config.student.lora.targets=('all-linear',)",
        "--config.student.lora.base_dtype=int8",
        "--config.weighting.weights=learned",
        "--config.weighting.answerer=",
        "--config.weighting.fit=other_fold",
        "--config.weighting.min_gap=-100.0",
        "--config.weighting.reading_steps=2",
        "--config.weighting.masking_steps=2",
        "--config.weighting.steps=2",
        "--config.eval.temperature=1.0",
        "--config.eval.samples=2",
        "--config.export.lora=adapter",
    )
    done = run(tmp_path / "run", *flags)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/predictions/test.jsonl").open()]
    assert all(len(row["samples"]) == 2 for row in rows)
    done = run(tmp_path / "run", *flags, "--mode=export")
    assert done.returncode == 0, done.stderr
    export = tmp_path / "run/export"
    names = {path.name for path in export.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= names
    assert "AutoModelForCausalLM" in (export / "README.md").read_text()
    done = run(tmp_path / "run", *flags, "--mode=export", "--config.export.lora=merged")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in export.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} <= names
