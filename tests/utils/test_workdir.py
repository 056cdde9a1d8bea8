import json
import os

import pytest

from kpod_jax.utils.errors import UserError
from kpod_jax.utils.workdir import Workdir


def made(path, settings, text="out", siblings=()):
    """A work directory with a stage that was made from an input and settings."""
    workdir = Workdir(path, siblings)
    (workdir / "in.txt").write_text("in")
    (workdir / "out.txt").write_text(text)
    workdir.mark("weigh", workdir.fingerprint(settings, ["in.txt"]))
    return workdir


def test_a_stage_is_done_while_inputs_settings_and_outputs_are_what_they_were(tmp_path):
    workdir = made(tmp_path / "new/run", {"alpha": 0.5})
    same = workdir.fingerprint({"alpha": 0.5}, ["in.txt"])
    assert workdir.done("weigh", same, ["out.txt"])
    assert Workdir(workdir.path).done("weigh", same, ["out.txt"])
    assert not workdir.done("score", same, ["out.txt"])
    assert not workdir.done("weigh", same, ["out.txt", "another.txt"])
    assert not workdir.done("weigh", workdir.fingerprint({"alpha": 0.4}, ["in.txt"]), ["out.txt"])
    (workdir / "in.txt").write_text("IN")
    assert not workdir.done("weigh", workdir.fingerprint({"alpha": 0.5}, ["in.txt"]), ["out.txt"])


def test_tuples_are_what_they_are_when_read_again(tmp_path):
    workdir = made(tmp_path, {"targets": ("q", "v")})
    assert workdir.done("weigh", workdir.fingerprint({"targets": ("q", "v")}, ["in.txt"]), [])
    assert workdir.difference("weigh", workdir.fingerprint({"targets": ("q",)}, ["in.txt"]))


def test_a_stage_that_was_not_completed_is_not_done(tmp_path):
    workdir = made(tmp_path, {})
    fingerprint = workdir.fingerprint({}, ["in.txt"])
    workdir.mark("weigh", fingerprint, complete=False)
    assert not workdir.done("weigh", fingerprint, ["out.txt"])
    assert workdir.stored("weigh") == fingerprint
    workdir.mark("weigh", fingerprint)
    assert workdir.done("weigh", fingerprint, ["out.txt"])
    assert Workdir(tmp_path / "other").stored("weigh") is None
    assert not Workdir(tmp_path / "other").done("weigh", fingerprint, [])


def test_difference_says_what_changed(tmp_path):
    workdir = made(tmp_path, {"alpha": 0.5, "steps": 3, "gone": 1})
    (workdir / "in.txt").write_text("IN")
    now = workdir.fingerprint({"alpha": 0.4, "steps": 3, "added": "x"}, ["in.txt"])
    text = workdir.difference("weigh", now)
    assert "alpha was 0.5, now 0.4" in text
    assert "added was None, now 'x'" in text
    assert "in.txt changed" in text
    assert "steps" not in text
    assert text.endswith("; and 1 more")
    assert workdir.difference("weigh", workdir.stored("weigh") or {}) == ""


def test_files_from_outside_count_and_names_of_a_hub_pass(tmp_path):
    workdir = Workdir(tmp_path / "run")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    before = workdir.fingerprint({}, [], [str(model), "google/flan-t5-base", ""])
    assert list(before) == [f"file {model}"]
    (model / "config.json").write_text("{ }")
    assert workdir.fingerprint({}, [], [str(model)]) != before
    assert json.loads(json.dumps(before)) == before
    with pytest.raises(UserError, match=r"missing\.txt"):
        workdir.fingerprint({}, ["missing.txt"])


def test_outputs_of_a_sibling_are_taken_over_where_they_are_made_from_the_same(tmp_path):
    made(tmp_path / "first", {"alpha": 0.5}, "first")
    workdir = Workdir(tmp_path / "second", [tmp_path / "second", tmp_path / "first"])
    (workdir / "in.txt").write_text("in")
    other = workdir.fingerprint({"alpha": 0.4}, ["in.txt"])
    assert not workdir.reuse("weigh", other, ["out.txt"])
    assert not (workdir / "out.txt").exists()
    same = workdir.fingerprint({"alpha": 0.5}, ["in.txt"])
    assert workdir.reuse("weigh", same, ["out.txt"])
    assert (workdir / "out.txt").read_text() == "first"
    assert workdir.done("weigh", same, ["out.txt"])


def test_a_sibling_that_was_not_run_yet_is_left_alone(tmp_path):
    workdir = Workdir(tmp_path / "run", [tmp_path / "later"])
    assert not workdir.reuse("weigh", {}, ["out.txt"])
    assert not (tmp_path / "later").exists()


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot create .*file/run.* another --workdir"):
        Workdir(tmp_path / "file/run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="permissions"):
            Workdir(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


def test_directories_are_not_taken_over(tmp_path):
    """A training's checkpoints: its metrics would be missing beside them."""
    other = made(tmp_path / "other", {"alpha": 0.5})
    (other / "checkpoints").mkdir()
    workdir = Workdir(tmp_path / "run", [tmp_path / "other"])
    (workdir / "in.txt").write_text("in")
    fingerprint = workdir.fingerprint({"alpha": 0.5}, ["in.txt"])
    assert not workdir.reuse("weigh", fingerprint, ["checkpoints"])
    assert workdir.reuse("weigh", fingerprint, ["out.txt"])


def test_the_stage_at_work_is_the_one_begun_last(tmp_path):
    workdir = made(tmp_path, {"alpha": 0.5})
    assert Workdir.running_stage(tmp_path) is None and Workdir.note(tmp_path, "score") is None
    for time, stage in enumerate(("score", "schedule")):
        workdir.mark(stage, {}, complete=False)
        os.utime(tmp_path / f".stages/{stage}.json", (time, time))
    assert Workdir.running_stage(tmp_path) == "schedule"
    note = Workdir.note(tmp_path, "weigh")
    assert note is not None and note["complete"]
