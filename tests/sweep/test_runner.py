"""Sweeps whose runs are made by a small script instead of a training."""

import collections
import json
import os
import signal
import subprocess
import sys

import pytest

from configs import quickstart
from kpod_jax import pipeline, sweep
from kpod_jax.parallel import processes
from kpod_jax.sweep import runner
from kpod_jax.utils import files, locks
from kpod_jax.utils.errors import LockedError, UserError
from kpod_jax.utils.workdir import Workdir
from tests.conftest import ROOT

SWEEP = """
from configs import quickstart

def get_runs(argument=""):
    runs = {}
    for name in argument.split("+"):
        runs[name] = quickstart.get_config(name.split("-")[0])
        runs[name].seed = int(name.split("-")[1])
    return runs
"""

# Makes the stages that no sibling has made, notes which, and leaves results; or fails.
FAKE = """
import json, os, pathlib, sys, time
root, name = pathlib.Path(sys.argv[1]), sys.argv[2]
plan = json.loads((root / "plan.json").read_text())
print("at work on", name)
(root / name / ".stages").mkdir(parents=True, exist_ok=True)
with open(root / "began.txt", "a") as file:
    file.write(name + "\\n")

def note(stage, complete):
    path = root / name / ".stages" / f"{stage}.json"
    value = {"fingerprint": plan["recipes"][name][stage], "complete": complete}
    path.with_suffix(".tmp").write_text(json.dumps(value))
    os.replace(path.with_suffix(".tmp"), path)

for stage, recipe in plan["recipes"][name].items():
    made = False
    for other in root.glob(f"*/.stages/{stage}.json"):
        stored = json.loads(other.read_text())
        made = made or (stored["complete"] and stored["fingerprint"] == recipe)
    if not made:
        note(stage, False)
        time.sleep(0.15)
        with open(root / "made.txt", "a") as file:
            file.write(f"{stage} {json.dumps(recipe, sort_keys=True)}\\n")
    note(stage, True)
    if name in plan["failing"] and stage == "weigh":
        (root / name / "failure.json").write_text(json.dumps({"reason": "no <b>memory</b>"}))
        sys.exit(1)
if name in plan["killed"]:
    os.kill(os.getpid(), 9)
rows = [{"id": f"q{i}", "question": "?", "gold": "1", "correct": i < 3, "prediction": "",
         "extracted": "1"} for i in range(4)]
(root / name / "predictions").mkdir(exist_ok=True)
lines = "".join(json.dumps(row) + "\\n" for row in rows)
(root / name / "predictions" / "test.jsonl").write_text(lines)
(root / name / "results.json").write_text(json.dumps({
    "method": name.split("-")[0], "seed": int(name.split("-")[1]), "split": "test", "ood": {},
    "accuracy": 0.75, "correct": 3, "total": 4, "interval": [0.3, 0.9], "checkpoint_step": 1,
    "supervised_rationale_tokens": 1234}))
"""

# Tells its parent to end, and notes that it was told the same.
ENDED = """
import os, pathlib, signal, sys, time
def end(*_):
    (pathlib.Path(sys.argv[1]) / "told").touch()
    sys.exit()
signal.signal(signal.SIGTERM, end)
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""


class Fake:
    """A sweep directory, its file of runs, and the script that makes them."""

    def __init__(self, root, names):
        self.root, self.names = root / "sweep", names
        self.root.mkdir()
        (root / "runs.py").write_text(SWEEP)
        (root / "fake.py").write_text(FAKE)
        self.sweep = f"{root / 'runs.py'}:{'+'.join(names)}"
        self.script = str(root / "fake.py")
        self.plan()

    def plan(self, failing=(), killed=()):
        recipes = {
            name: {s: r.settings for s, r in pipeline.recipes(config).items()}
            for name, config in runner._load(self.sweep).items()
        }
        plan = {"recipes": recipes, "failing": list(failing), "killed": list(killed)}
        files.write_json(self.root / "plan.json", plan)

    def run(self, **options):
        command = lambda name: [sys.executable, "-S", self.script, str(self.root), name]  # noqa: E731
        return sweep.run(self.sweep, self.root, command=command, **options)

    def lines(self, name):
        return (self.root / name).read_text().splitlines()


@pytest.fixture
def fake(tmp_path, monkeypatch):
    def done(config, path):
        return (path / "results.json").is_file()

    monkeypatch.setattr(runner.pipeline, "up_to_date", done)
    return lambda *names: Fake(tmp_path, names)


def test_a_sweep_leaves_one_comparison(fake, capsys):
    made = fake("kpod-0", "kpod-1", "none-0")
    assert made.run() == {}
    result = files.read_json(made.root / "comparison.json")
    assert [row["name"] for row in result["rows"]] == ["KPOD", "no distillation"]
    for name in ("comparison.md", "comparison.tex", "report.html"):
        assert (made.root / name).stat().st_size > 300
    printed = capsys.readouterr().out
    assert "[1 of 3 done] kpod-1\n" in printed and "[2 of 3 done] kpod-1: done (" in printed
    assert "KPOD                         75.0%    ± 0.0      1.2  75.0, 75.0\n" in printed


def test_one_run_that_fails_and_one_that_is_killed_stop_no_other(fake, capsys):
    made = fake("kpod-0", "kpod-1", "scotd-0", "none-0")
    made.plan(failing=["kpod-1"], killed=["scotd-0"])
    failed = made.run(parallel=2)
    assert failed.keys() == {"kpod-1", "scotd-0"}
    assert failed["kpod-1"] == "no <b>memory</b>"
    assert "SIGKILL" in failed["scotd-0"] and "run out of memory" in failed["scotd-0"]
    result = files.read_json(made.root / "comparison.json")
    assert result["failed"] == failed
    assert [len(row["cells"][0]["seeds"]) for row in result["rows"]] == [1, 1]
    page = (made.root / "report.html").read_text()
    assert "no &lt;b&gt;memory&lt;/b&gt;" in page and "<b>memory" not in page
    assert "kpod-1 failed: no &lt;b&gt;memory" in (made.root / "comparison.md").read_text()
    assert "kpod-1: failed: no <b>memory</b>" in capsys.readouterr().out


def test_all_runs_fail(fake):
    made = fake("kpod-0")
    made.plan(failing=["kpod-0"])
    assert made.run() == {"kpod-0": "no <b>memory</b>"}
    assert not (made.root / "comparison.json").exists()


def test_what_is_done_is_not_done_again_and_what_failed_is(fake):
    made = fake("kpod-0", "scotd-0", "none-0")
    made.plan(failing=["kpod-0"])
    assert made.run().keys() == {"kpod-0"}
    made.plan()
    assert made.run() == {}
    began = collections.Counter(made.lines("began.txt"))
    assert began == {"kpod-0": 2, "scotd-0": 1, "none-0": 1}
    assert files.read_json(made.root / "comparison.json")["failed"] == {}
    made.run()
    assert collections.Counter(made.lines("began.txt")) == began


def test_runs_at_the_same_time_make_each_shared_stage_once(fake):
    names = ["kpod-0", "without_progression-0", "acl-0", "spl-0", "kpod-1", "acl-1", "scotd-0"]
    made = fake(*names)
    assert made.run(parallel=4) == {}
    lines = made.lines("made.txt")
    assert len(lines) == len(set(lines)) > 6
    # Records for all, weights and difficulties for each seed, schedules of three curricula by seed.
    counts = collections.Counter(line.split()[0] for line in lines)
    assert counts == {"rationales": 1, "weigh": 2, "score": 2, "schedule": 5}
    assert made.lines("began.txt")[0] == "kpod-0"
    assert (made.root / "spl-0" / "log.txt").read_text() == "at work on spl-0\n"


def test_recipes_tell_which_stages_runs_share():
    def recipes(method, seed=0, changes=()):
        config = quickstart.get_config(method)
        config.update_from_flattened_dict(dict(changes))
        config.seed = seed
        return pipeline.recipes(config)

    kpod = recipes("kpod")
    assert list(kpod) == ["rationales", "weigh", "score", "schedule"]
    assert list(recipes("scotd")) == ["rationales"]
    assert recipes("scotd")["rationales"] == kpod["rationales"]
    beta = recipes("without_diversity")
    assert [beta[s] == kpod[s] for s in kpod] == [True, True, True, False]
    seed = recipes("kpod", 1)
    assert [seed[s] == kpod[s] for s in kpod] == [True, False, False, False]
    # Scoring has the same settings, but reads other weights.
    alpha = recipes("kpod", changes={"weighting.alpha": 0.9})
    assert alpha["score"].settings == kpod["score"].settings
    assert [alpha[s] == kpod[s] for s in kpod] == [True, False, False, False]


def test_a_stage_is_waited_for_only_while_it_is_not_made(tmp_path):
    recipes = {"a": pipeline.recipes(quickstart.get_config("kpod"))}
    recipes["b"] = pipeline.recipes(quickstart.get_config("without_progression"))

    def ready():
        return runner._is_ready(recipes, tmp_path, "b", ["a"])

    workdir = Workdir(tmp_path / "a")
    assert not ready()
    workdir.mark("rationales", recipes["a"]["rationales"].settings | {"file x": "digest"})
    assert not ready()
    workdir.mark("weigh", recipes["a"]["weigh"].settings, complete=False)
    assert not ready()
    old = recipes["a"]["weigh"].settings | {"weighting.alpha": 0.9}
    workdir.mark("weigh", old)
    assert not ready()  # Of another configuration: it will be made again.
    workdir.mark("weigh", recipes["a"]["weigh"].settings)
    assert ready()
    # Or another run has made it, which both copy.
    (workdir / ".stages/weigh.json").unlink()
    assert not ready()
    recipes["c"] = recipes["a"]
    Workdir(tmp_path / "c").mark("weigh", recipes["a"]["weigh"].settings)
    assert ready()


def test_two_sweeps_do_not_share_a_directory(fake):
    made = fake("kpod-0")
    with (
        locks.locked(Workdir(made.root).path),
        pytest.raises(UserError, match="is in use by process"),
    ):
        made.run()
    assert made.run() == {}


def test_a_run_of_another_process_is_left_alone(fake, monkeypatch):
    made = fake("kpod-0")

    def held(*args, **kwargs):
        raise LockedError("in use by process 7")

    monkeypatch.setattr(runner.pipeline, "run", held)
    with pytest.raises(LockedError):
        sweep.make(made.sweep, made.root, ["kpod-0"])
    assert not (made.root / "kpod-0/failure.json").exists()


def test_what_is_wrong_with_a_sweep_is_said_before_anything_starts(fake, tmp_path):
    made = fake("kpod-0")
    with pytest.raises(UserError, match="no such Python file"):
        sweep.run("nowhere.py", made.root)
    with pytest.raises(UserError, match="--parallel=0"):
        made.run(parallel=0)
    with pytest.raises(UserError, match="Use --parallel=1, or a local directory"):
        sweep.run(made.sweep, "gs://bucket/sweep", parallel=2)
    with pytest.raises(UserError, match="no such run in the sweep; expected one of kpod-0"):
        sweep.make(made.sweep, made.root, ["kpod-7"])
    bad = tmp_path / "bad.py"
    bad.write_text(SWEEP.replace("return runs", "runs[name].schedule.p = -5.0\n    return runs"))
    with pytest.raises(UserError, match=r"Run kpod-0: .*\n  schedule.p=-5.0"):
        sweep.run(f"{bad}:kpod-0", made.root)
    bad.write_text(SWEEP.replace("runs[name]", "runs['a/' + name]"))
    with pytest.raises(UserError, match="expected run names that can name directories"):
        sweep.run(f"{bad}:kpod-0", made.root)
    bad.write_text("def get_runs(argument): return {}")
    with pytest.raises(UserError, match="has no runs"):
        sweep.run(str(bad), made.root)
    bad.write_text("")
    with pytest.raises(UserError, match="does not define get_runs"):
        sweep.run(str(bad), made.root)


def test_a_run_in_this_process_says_why_it_failed(fake, monkeypatch):
    made = fake("kpod-0")

    def fail(*args, **kwargs):
        raise ValueError("the third wheel")

    monkeypatch.setattr(runner.pipeline, "run", fail)
    with pytest.raises(ValueError, match="third wheel"):
        sweep.make(made.sweep, made.root, ["kpod-0"])
    reason = files.read_json(made.root / "kpod-0" / "failure.json")["reason"]
    assert reason == "ValueError: the third wheel"


def test_an_old_reason_is_not_told_again(fake):
    made = fake("kpod-0")
    made.plan(failing=["kpod-0"])
    made.run()
    made.plan(killed=["kpod-0"])
    assert "SIGKILL" in made.run()["kpod-0"]


def test_sigterm_ends_the_runs_at_work(fake, tmp_path):
    made = fake("kpod-0")
    (tmp_path / "fake.py").write_text(ENDED)
    before = signal.getsignal(signal.SIGTERM)
    try:
        processes.raise_on_sigterm()
        with pytest.raises(processes.Preempted):
            made.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (made.root / "told").exists()


@pytest.mark.slow
def test_a_whole_sweep_from_outside(tmp_path):
    """Three tiny runs, two at a time, one of which cannot work; then again, without it."""
    tiny = (
        "short,data.train_examples=40,data.validation_examples=8,data.test_examples=8,"
        "distill.epochs=2,distill.batch_size=8,distill.buckets=1,eval.max_new_tokens=8,"
        "weighting.weights=uniform"
    )
    root = tmp_path / "sweep"
    command = [
        sys.executable, "-m", "kpod_jax.main", "--mode=sweep", "--parallel=2",
        f"--workdir={root}", f"--sweep=configs/sweeps/quickstart.py:{tiny}",
    ]  # fmt: skip
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TFDS_DATA_DIR": str(tmp_path / "tfds")}
    options = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    blocked = root / "scotd-seed0" / "records"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way")
    done = subprocess.run(command, **options)
    assert done.returncode == 1, done.stderr
    assert "Failed runs:\n  scotd-seed0: " in done.stderr
    assert json.loads((root / "comparison.json").read_text())["failed"].keys() == {"scotd-seed0"}
    logs = {path.parent.name: path.read_text() for path in root.glob("*/log.txt")}
    taken = [name for name, log in logs.items() if "reused" in log]
    assert taken == ["none-seed0"]  # Of the records; the blocked run could not.
    blocked.unlink()
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    assert "2 of 3 runs are done: kpod-seed0, none-seed0" in done.stdout
    result = json.loads((root / "comparison.json").read_text())
    assert [row["name"] for row in result["rows"]] == ["KPOD", "SCoTD", "no distillation"]
