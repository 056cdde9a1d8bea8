import json
import pathlib
import sys
import threading
import types
from importlib import util
from typing import Any

import jax
import pytest

from kpod_jax import pipeline
from kpod_jax.cli import checks
from kpod_jax.config import defaults, values
from kpod_jax.training import trackers
from kpod_jax.training.metrics import MetricsWriter
from kpod_jax.utils.errors import UserError

KEY = "local-" + "k3y" * 12


class Calls:
    """A module or an object that remembers what it is asked, by dotted name."""

    def __init__(self, path: str, log: list, /, **attributes):
        self._name, self._log = path, log
        vars(self).update(attributes)

    def __getattr__(self, name):
        return Calls(f"{self._name}.{name}", self._log)

    def __call__(self, *args, **options):
        self._log.append((self._name, args, options))
        return Calls(self._name.rpartition(".")[2], self._log, id="run-1", name="made")


def config(*names, **changes):
    made = defaults.get_config()
    made.track = names
    made.update_from_flattened_dict(changes)
    return made


def fake(monkeypatch, module, /, **attributes) -> list:
    log: list[Any] = []
    monkeypatch.setitem(sys.modules, module, Calls(module, log, **attributes))
    return log


def track(root, made, steps=(1, 2)):
    """Two metrics lines, results and a report."""
    root.mkdir(exist_ok=True)
    (root / "results.json").write_text(json.dumps({"accuracy": 0.5, "split": "test"}))
    (root / "report.html").write_text("<p>")
    with trackers.tracking(made, root), MetricsWriter(root, "distill", restored_step=0) as writer:
        for step in steps:
            writer.write(step, {"loss": 1.0 / step, "nan": float("nan"), "note": "text"})
        trackers.log_results(root)


def test_tensorboard_is_the_default_and_one_of_the_trackers(tmp_path):
    assert values.from_text("track", "wandb,tensorboard") == ("wandb", "tensorboard")
    assert defaults.get_config().track == ("tensorboard",)
    for names in (("tensorboard",), ()):
        root = tmp_path / str(len(names))
        track(root, config(*names))
        assert (root / "tensorboard/distill").exists() == bool(names)
        rows = [json.loads(line) for line in (root / "metrics.jsonl").open()]
        assert [row["loss"] for row in rows] == [1.0, 0.5]
        assert not (root / trackers.IDS).exists()


def test_wandb_gets_metrics_configuration_results_and_report(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    log = fake(monkeypatch, "wandb")
    made = config("wandb", **{"teacher.model": f"at-{KEY}", "seed": 3})
    track(tmp_path / "run", made)
    by_name = {name: (args, options) for name, args, options in log}
    init = by_name["wandb.init"][1]
    assert (init["project"], init["name"], init["resume"]) == ("kpod-jax", "run", "allow")
    assert init["config"]["seed"] == 3 and KEY not in str(log)
    assert by_name["wandb.Settings"][1].items() >= {"console": "off", "save_code": False}.items()
    assert [args[0] for name, args, _ in log if name == "init.log"] == [
        {"distill/loss": 1.0, "distill/step": 1},
        {"distill/loss": 0.5, "distill/step": 2},
    ]
    assert by_name["init.summary.update"][0] == ({"eval/accuracy": 0.5},)
    assert by_name["Artifact.add_file"][0] == (str(tmp_path / "run/report.html"),)
    assert by_name["init.finish"][1] == {"exit_code": 0}

    # Resumed, it is the same run.
    log.clear()
    track(tmp_path / "run", made, (3,))
    assert log[1][2]["id"] == init["id"]
    assert json.loads((tmp_path / "run" / trackers.IDS).read_text()) == {"wandb": init["id"]}


def test_trackio_goes_on_in_the_run_of_its_name(tmp_path, monkeypatch):
    log = fake(monkeypatch, "trackio")
    for _ in range(2):
        track(tmp_path / "run", config("trackio"), (1,))
    inits = [options for name, _, options in log if name == "trackio.init"]
    assert inits[0]["name"] == inits[1]["name"] and inits[0]["name"].startswith("run-")
    assert inits[0]["private"] is True
    logged = [(args, options) for name, args, options in log if name == "init.log"]
    assert logged[0] == (({"distill/loss": 1.0},), {"step": 1})
    assert logged[1] == (({"eval/accuracy": 0.5},), {"step": 0})
    assert [name for name, *_ in log].count("init.log_artifact") == 2


def test_mlflow_sets_parameters_once(tmp_path, monkeypatch):
    log = fake(monkeypatch, "mlflow")
    monkeypatch.setitem(
        sys.modules,
        "mlflow.entities",
        types.SimpleNamespace(Metric=lambda *args: args, Param=lambda *args: args),  # pyright: ignore
    )
    sys.modules["mlflow"].entities = sys.modules["mlflow.entities"]  # pyright: ignore
    run = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))
    client = Calls("client", log, create_run=lambda *args, **options: run)
    sys.modules["mlflow"].MlflowClient = lambda: client  # pyright: ignore
    track(tmp_path / "run", config("mlflow"), (1,))
    params = [p for name, _, options in log for p in options.get("params", ())]
    assert ("seed", "0") in params and len(params) > 100
    assert all(len(o["params"]) <= 100 for name, _, o in log if "params" in o)
    metrics = [m for _, _, options in log for m in options.get("metrics", ())]
    assert [(name, value, step) for name, value, _, step in metrics] == [
        ("distill/loss", 1.0, 1),
        ("eval/accuracy", 0.5, 0),
    ]
    assert log[-1][:2] == ("client.set_terminated", ("r1", "FINISHED"))
    log.clear()
    track(tmp_path / "run", config("mlflow"), (2,))
    assert log[0] == ("client.update_run", ("r1",), {"status": "RUNNING"})
    assert not any("params" in options for _, _, options in log)


def test_a_failure_is_one_line_without_keys_and_stops_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)

    def init(**_):
        raise ConnectionError(f"no network\nfor {KEY}")

    fake(monkeypatch, "wandb", init=init)
    track(tmp_path / "run", config("wandb", "tensorboard"))
    said = capsys.readouterr().out
    assert said.count("track: wandb failed and is no longer used: ConnectionError: no") == 1
    assert KEY not in said and said.count("\n") == 1
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "run/tensorboard/distill").is_dir()


def test_a_tracker_that_hangs_is_left_behind(tmp_path, monkeypatch, capsys):
    entered, free = threading.Event(), threading.Event()

    def init(**_):
        entered.set()
        free.wait(60)

    monkeypatch.setattr(trackers, "_SECONDS", 0.1)
    monkeypatch.setattr(trackers, "_MAX_PENDING", 1)
    fake(monkeypatch, "wandb", init=init)
    track(tmp_path / "run", config("wandb"), range(1, 9))
    assert entered.wait(60)  # Else the thread would import the package itself after this test.
    free.set()
    assert capsys.readouterr().out.count("track: wandb failed") == 1
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 8


def test_a_run_that_fails_is_marked(tmp_path, monkeypatch):
    log = fake(monkeypatch, "wandb")
    with pytest.raises(KeyError), trackers.tracking(config("wandb"), tmp_path) as tracking:
        tracking.services[0].log("distill", 1, {"loss": 1.0})
        raise KeyError
    assert log[-1] == ("init.finish", (), {"exit_code": 1})


def test_only_the_first_process_tracks(tmp_path, monkeypatch):
    log = fake(monkeypatch, "wandb")
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    track(tmp_path / "run", config("wandb"))
    assert not log and not (tmp_path / "run/metrics.jsonl").exists()


def test_missing_and_unknown_trackers_are_told_before_anything_begins(monkeypatch):
    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "wandb" else found(name))
    with pytest.raises(
        UserError, match=r"needs the package wandb.*pip install wandb`, or .*\[wandb"
    ):
        checks.check(config("wandb"))
    with pytest.raises(UserError, match=r"track='neptune': expected one or more of tensorboard"):
        checks.check(config("tensorboard", "neptune"))
    with pytest.raises(UserError, match="expected each tracker once"):
        checks.check(config("tensorboard", "tensorboard"))


def test_a_run_of_the_pipeline_tracks_its_stages(tmp_path, monkeypatch):
    log = fake(monkeypatch, "wandb")

    def run(made, directory, mode):
        with MetricsWriter(directory.path, "weigh") as writer:
            writer.write(1, {"gap": 2.0})
        (directory.path / "results.json").write_text('{"accuracy": 0.25}')
        return directory.path

    monkeypatch.setattr(pipeline, "_run", run)
    assert pipeline.run(config("wandb"), tmp_path / "run") == tmp_path / "run"
    assert ("init.log", ({"weigh/gap": 2.0, "weigh/step": 1},), {}) in log
    assert ("init.summary.update", ({"eval/accuracy": 0.25},), {}) in log


# The libraries themselves, offline. Nothing is written outside `tmp_path`.


def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    for step in (1, 2):
        track(tmp_path / "run", config("wandb"), (step,))
    run_id = json.loads((tmp_path / "run" / trackers.IDS).read_text())["wandb"]
    logs = list((tmp_path / "run/wandb").glob(f"offline-run-*/run-{run_id}.wandb"))
    assert logs and all(b"distill/loss" in path.read_bytes() for path in logs)


def test_trackio_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # Read when it is imported.
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    pytest.importorskip("trackio", reason="trackio is not installed")
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    for step in (1, 2):
        track(tmp_path / "run", config("trackio"), (step,))
    name = json.loads((tmp_path / "run" / trackers.IDS).read_text())["trackio"]
    assert storage.get_runs("mine") == [name]
    rows = storage.get_logs("mine", name)
    losses = [(row["step"], row["distill/loss"]) for row in rows if "distill/loss" in row]
    assert losses == [(1, 1.0), (2, 0.5)]


def test_mlflow_offline(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # Needs no database.
    uri = pathlib.Path(tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for step in (1, 2):
        track(tmp_path / "run", config("mlflow"), (step,))
    client = mlflow.MlflowClient(tracking_uri=uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "kpod-jax"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics == {"distill/loss": 0.5, "eval/accuracy": 0.5}
    assert run.data.params["data.name"] == "arithmetic" and run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "distill/loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5)]
    assert [f.path for f in client.list_artifacts(run.info.run_id)] == ["report.html"]
