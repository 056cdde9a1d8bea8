"""Files of a work directory that something changed: found before they are read or overwritten."""

import functools
import json
import os
import pathlib
import shutil
from typing import ClassVar, NamedTuple

import jax
import numpy as np
import pytest

from kpod_jax import pipeline
from kpod_jax.evaluation import results, significance
from kpod_jax.parallel import processes, sharding
from kpod_jax.report import run as run_files
from kpod_jax.schedule.schedule import Schedule
from kpod_jax.training.checkpoints import Checkpoints
from kpod_jax.utils import config_dict, files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.stage_cache import Stage, StageCache
from kpod_jax.utils.workdir import Workdir
from kpod_jax.weighting import summary
from tests.conftest import ROOT
from tests.test_pipeline import small

CHANGED = "was changed after the {} stage wrote it"


class Made(NamedTuple):
    """The result of a stage: texts by file."""

    texts: dict[str, str]

    def save(self, root: pathlib.Path) -> None:
        for name, text in self.texts.items():
            files.write_text(root / name, text)

    def __str__(self) -> str:
        return "made"


class Run:
    """Three stages: records, weights made from them, and a page of both; and a training."""

    STAGES: ClassVar = {
        "records": Stage(keys=("seed",), outputs=("records/{split}.txt", "records/b.txt")),
        "weights": Stage(keys=("seed",), outputs=("weights.txt",), inputs=("records/b.txt",)),
        "train": Stage(
            keys=("seed",), outputs=("kept",), inputs=("weights.txt",), training=True,
            also=("kept/[0-9]*/sums.txt", "train.txt"),
        ),
        "eval": Stage(
            keys=("seed",), outputs=("results.txt",), inputs=("records/{split}.txt",),
            reads=lambda config: ("train",), also=("said/*.txt",),
        ),
        "folder": Stage(keys=("seed",), outputs=("folder",)),
        "page": Stage(keys=(), outputs=("page.txt",), always=True),
        "export": Stage(keys=("seed",), outputs=("export",)),
    }  # fmt: skip
    MADE: ClassVar = {
        "records": {"records/test.txt": "a" * 99, "records/b.txt": "b"},
        "weights": {"weights.txt": "w"},
        "train": {"kept/1/sums.txt": "1", "kept/2/sums.txt": "2", "train.txt": "t"},
        "eval": {"results.txt": "r", "said/test.txt": "s"},
        "folder": {"folder/a": "1", "folder/b/c": "2"},
        "page": {"page.txt": "p"},
        "export": {"export/README.md": "r"},
    }

    def __init__(self, path: pathlib.Path, siblings=(), seed: int = 0) -> None:
        self.path, self.made = path, []
        self.config = small(seed=seed)
        self.siblings = siblings

    def __call__(self, *names: str) -> list[str]:
        """Runs stages; returns those that did something."""
        workdir = Workdir(self.path, self.siblings)
        cache = StageCache(self.STAGES, self.config, workdir, processes, names or [*self.STAGES])
        self.made = []
        for name in self.STAGES:
            cache.run(name, self._make, name)
        return self.made

    def _make(self, name: str) -> Made:
        self.made.append(name)
        return Made(self.MADE[name])

    def contents(self) -> dict[str, bytes]:
        paths = (path for path in self.path.rglob("*") if path.is_file())
        return {str(path.relative_to(self.path)): path.read_bytes() for path in paths}


@pytest.fixture
def run(tmp_path, here) -> Run:
    made = Run(tmp_path / "run")
    assert made() == [*Run.STAGES]
    assert made() == ["page"]
    return made


def flip(path: pathlib.Path) -> None:
    """Flips a bit and keeps the size and the time."""
    times, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


DAMAGES = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "of another run": lambda path: path.write_text("another"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("name", "stage", "reader"),
    [
        ("records/test.txt", "records", "eval"),
        ("records/b.txt", "records", "weights"),
        ("weights.txt", "weights", "train"),
        ("kept/2/sums.txt", "train", "eval"),
        ("train.txt", "train", "eval"),
        ("results.txt", "eval", "page"),
        ("said/test.txt", "eval", "page"),
        ("folder/b/c", "folder", "page"),
    ],
)
def test_a_changed_output_is_named_before_anything_is_overwritten(run, damage, name, stage, reader):
    DAMAGES[damage](run.path / name)
    before = run.contents()
    for names in ((), (stage,), (reader,)):
        with pytest.raises(UserError) as error:
            run(*names)
        (line,) = str(error.value).splitlines()
        assert line.startswith(f"{run.path / name} {CHANGED.format(stage)}")
        assert f"Delete it, then run --mode={stage} or --mode=all to make it again." in line
        if names != ():  # The stages before it do nothing, but say so.
            assert run.made == []
    run.config.seed = 1  # Another configuration would overwrite it, too.
    with pytest.raises(UserError, match="was changed after"):
        run(stage)
    run.config.seed = 0
    assert run.contents() == before
    (run.path / name).unlink()
    assert run() == [stage, "page"]
    assert run() == ["page"]


@pytest.mark.parametrize("name", ["kept/1", "kept/2", "said/test.txt", "results.txt", "folder/a"])
def test_a_missing_output_is_made_again_and_said(run, name, capsys):
    stage = {"kept": "train", "folder": "folder"}.get(name.split("/")[0], "eval")
    path = run.path / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    capsys.readouterr()
    assert run() == [stage, "page"]
    assert f"{stage}: rerunning: {path}" in capsys.readouterr().out


def test_a_missing_checkpoint_is_never_passed_over(run):
    shutil.rmtree(run.path / "kept/2")
    with pytest.raises(UserError) as error:
        run("eval")
    assert f"{run.path / 'kept/2/sums.txt'}, which the train stage wrote, is missing. Run" in str(
        error.value
    )


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\0", b"[]", b"null", b"3", b"{}", b'{"fingerprint": {}}', b"[" * 9999,
     b'{"fingerprint": [], "complete": true}', b'{"fingerprint": {}, "complete": "yes"}',
     b'{"fingerprint": {}, "complete": true, "outputs": 3}'],
    ids=range(12),
)  # fmt: skip
@pytest.mark.parametrize("stage", ["records", "train", "eval"])
def test_a_damaged_mark_has_one_remedy(run, stage, text):
    path = run.path / f".stages/{stage}.json"
    path.write_bytes(text)
    with pytest.raises(UserError) as error:
        run()
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{path} is ")
    assert line.endswith(f"Delete it, then run --mode={stage} or --mode=all to make it again.")
    path.unlink()
    assert run() == [stage, "page"]
    assert run() == ["page"]


def test_what_a_user_changes_in_the_export_is_no_obstacle_to_the_page(run):
    (run.path / "export/README.md").write_text("mine")
    assert run("page") == ["page"]
    with pytest.raises(UserError, match=CHANGED.format("export")):
        run("export")


def test_work_directories_of_earlier_versions_keep_working(run, monkeypatch):
    for path in (run.path / ".stages").glob("*.json"):
        note = json.loads(path.read_text())
        note.pop("outputs", None)
        path.write_text(json.dumps(note))
    monkeypatch.setitem(config_dict.ADDED, "seed", 0)
    path = run.path / ".stages/train.json"
    note = json.loads(path.read_text())
    del note["fingerprint"]["seed"]  # The version had no such key.
    path.write_text(json.dumps(note))
    assert run() == ["page"]
    flip(run.path / "weights.txt")
    with pytest.raises(UserError) as error:
        run("train")
    said = str(error.value)
    assert "train stage of another configuration: weights.txt changed. Nothing was changed." in said
    assert f"If {run.path / 'weights.txt'} may be damaged, delete it: --mode=all makes it" in said
    (run.path / "weights.txt").unlink()
    assert run() == ["weights", "page"]  # The training is kept.
    run.config.seed = 1
    with pytest.raises(UserError, match="seed was 0, now 1") as error:
        run("train")
    assert "may be damaged" not in str(error.value)


def test_damage_does_not_spread_to_other_runs(run, tmp_path):
    flip(run.path / "weights.txt")
    other = Run(tmp_path / "other", [run.path])
    assert "weights" in other() and "records" not in other.made
    assert (other.path / "weights.txt").read_text() == "w"
    assert other() == ["page"]
    flip(other.path / "records/b.txt")
    with pytest.raises(UserError, match=r"other/records/b\.txt was changed"):
        other()


def test_what_a_killed_stage_left_is_made_again(run):
    note = json.loads((run.path / ".stages/weights.json").read_text())
    workdir = Workdir(run.path)
    workdir.mark("weights", note["fingerprint"], complete=False)
    (run.path / "weights.txt").write_text("hal")
    assert run() == ["weights", "page"]


def test_an_up_to_date_run_is_not_one_with_changed_files(run):
    cache = StageCache(Run.STAGES, run.config, Workdir(run.path), processes)
    assert all(map(cache.up_to_date, Run.STAGES))
    flip(run.path / "said/test.txt")
    with pytest.raises(UserError, match=CHANGED.format("eval")[:30]):
        cache.up_to_date("eval")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"accuracy": "x"}', "[" * 9999])
@pytest.mark.parametrize(
    ("name", "stage", "read"),
    [
        ("results.json", "eval", results.read),
        ("weighting.json", "weigh", summary.read),
        ("results.json", "eval", run_files.load),
        ("weighting.json", "weigh", run_files.load),
    ],
)
def test_damaged_json_has_one_remedy(tmp_path, text, name, stage, read):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read(tmp_path)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{tmp_path / name} is ")
    assert line.endswith(f"Delete it, then run --mode={stage} or --mode=all to make it again.")


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "arrays"])
@pytest.mark.parametrize("read", [Schedule.load, run_files.load])
def test_a_damaged_schedule_can_be_made_again(tmp_path, damage, read):
    path = tmp_path / "schedule.npz"
    files.write_npz(path, **({"other": np.zeros(3)} if damage == "arrays" else {"x": np.ones(99)}))
    if damage != "arrays":
        DAMAGES[damage](path)
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert str(error.value).endswith(files.remedy("schedule"))


def test_a_comparison_notices_a_changed_answer(tmp_path):
    row = {"id": "q", "question": "?", "gold": "1", "correct": False}
    for name in "ab":
        workdir = Workdir(tmp_path / name)
        files.write_jsonl(workdir / "predictions/test.jsonl", [row])
        workdir.mark("eval", {}, written=["predictions/test.jsonl"])
    runs = [str(tmp_path / name) for name in "ab"]
    assert "| a |" in significance.compare(runs)[0]
    path = tmp_path / "b/predictions/test.jsonl"
    path.write_text(path.read_text().replace("false", "true"))
    with pytest.raises(UserError, match=r"b/predictions/test\.jsonl was changed after the eval"):
        significance.compare(runs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    """A finished run, with two checkpoints."""
    workdir = tmp_path_factory.mktemp("damage") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        mesh = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
        patch.setattr(sharding, "make_mesh", mesh)  # As in `here`: the same bits.
        pipeline.run(small(), workdir)
    return workdir


@pytest.fixture
def copy(finished, tmp_path, here) -> pathlib.Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def largest(path: pathlib.Path) -> pathlib.Path:
    return max((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("records/train_tokens.npy", "rationales"),
        ("step_difficulty.npz", "score"),
        ("schedule.npz", "schedule"),
        ("predictions/test.jsonl", "eval"),
    ],
)
def test_a_whole_run_is_mended_by_one_command(finished, copy, name, stage):
    flip(copy / name)
    for mode in ("all", stage, "report"):
        with pytest.raises(UserError) as error:
            pipeline.run(small(), copy, mode)
        assert str(error.value).startswith(f"{copy / name} {CHANGED.format(stage)}")
    (copy / name).unlink()
    weights = (copy / "checkpoints/student/20/checksums.json").stat().st_mtime_ns
    pipeline.run(small(), copy)
    assert (copy / name).read_bytes() == (finished / name).read_bytes()
    assert (copy / "checkpoints/student/20/checksums.json").stat().st_mtime_ns == weights


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flipped", "deleted", "metric"])
def test_a_damaged_newest_checkpoint_of_a_finished_run(finished, copy, how, capsys):
    newest = copy / "checkpoints/student/20"
    if how == "flipped":
        flip(largest(newest / "state"))
    elif how == "metric":
        DAMAGES["cut"](newest / "metrics/metrics")
    if how != "deleted":
        for mode in ("eval", "export"):
            with pytest.raises(UserError, match=rf"{newest} is damaged.* delete it, then"):
                pipeline.run(small(eval__batch_size=4), copy, mode)
    shutil.rmtree(newest)
    for mode in ("eval", "export"):
        with pytest.raises(UserError, match=rf"{newest}/checksums.json, which .* is missing"):
            pipeline.run(small(), copy, mode)
    capsys.readouterr()
    pipeline.run(small(), copy)
    said = capsys.readouterr().out
    assert f"distill: rerunning: {newest}/checksums.json is missing" in said
    name = "predictions/test.jsonl"
    assert (copy / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flipped", "deleted"])
def test_a_damaged_checkpoint_before_the_newest(finished, copy, how):
    """The training goes on from the newest one, so it makes no earlier one again by itself."""
    path, newest = copy / "checkpoints/student/18", copy / "checkpoints/student/20"
    if how == "flipped":
        flip(largest(path / "state"))
        with pytest.raises(UserError, match=rf"{path} is damaged: .* those after it \(20\), then"):
            pipeline.run(small(eval__checkpoint="18"), copy, "eval")
    shutil.rmtree(path)
    mark = (copy / ".stages/distill.json").read_bytes()
    for mode in ("all", "distill", "eval"):
        with pytest.raises(UserError) as error:
            pipeline.run(small(), copy, mode)
        said = str(error.value)
        assert f"{path}/checksums.json, which the distill stage wrote, is missing. Restore" in said
        assert "delete it and those after it (20)" in said
    assert (copy / ".stages/distill.json").read_bytes() == mark
    shutil.rmtree(newest)
    pipeline.run(small(), copy)
    with (
        Checkpoints(copy / "checkpoints/student", read_only=True) as made,
        Checkpoints(finished / "checkpoints/student", read_only=True) as expected,
    ):
        assert made.steps() == expected.steps() and made.best_step() == expected.best_step()
    name = "predictions/test.jsonl"
    assert (copy / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
def test_an_interrupted_training_whose_only_checkpoint_is_damaged(copy):
    """The second attempt must not train from step 0, which nobody asked for."""
    shutil.rmtree(copy / "checkpoints/student/20")
    mark = copy / ".stages/distill.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"complete": False}))
    flip(largest(copy / "checkpoints/student/18/state"))
    for _ in range(3):
        with pytest.raises(UserError, match=r"No intact checkpoint: .*/18: state/"):
            pipeline.run(small(), copy)
    shutil.rmtree(copy / "checkpoints/student")
    pipeline.run(small(), copy, "distill")
    with Checkpoints(copy / "checkpoints/student", read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 20
