"""Work directories in a bucket: objects that appear when they are closed and cannot be added to."""

import http
import json
import logging
import os
import pathlib
import socket
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from kpod_jax import pipeline, push, report, sweep
from kpod_jax.parallel import processes
from kpod_jax.sweep import runner
from kpod_jax.training.checkpoints import Checkpoints
from kpod_jax.training.metrics import MetricsWriter
from kpod_jax.utils import files, locks
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.stage_cache import Stage, StageCache
from kpod_jax.utils.workdir import Workdir, changed
from tests.conftest import ROOT
from tests.sweep import runs
from tests.test_pipeline import SMALL, environment

server = pytest.importorskip("gcp_storage_emulator.server")
objects = pytest.importorskip("gcp_storage_emulator.handlers.objects")
pytest.importorskip("gcsfs")


def tell_generations(patch: pytest.MonkeyPatch) -> None:
    """Teaches the emulator what TensorStore builds on, and the real one does.

    What is read is told with its generation, and what is written for a generation that is no longer
    there is turned down. Else checkpoints of several writes end with "Malformed StorageGeneration".
    """
    plain_download, plain_insert, lock = objects.download, objects.insert, threading.Lock()

    def generation(request, storage, name: str) -> str:
        try:
            return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
        except objects.NotFound:
            return "0"

    def download(request, response, storage, *args, **kwargs):
        with lock:
            plain_download(request, response, storage, *args, **kwargs)
            found = generation(request, storage, request.params["object_id"])
        response["x-goog-generation"] = found

    def insert(request, response, storage, *args, **kwargs):
        with lock:
            if expected := request.query.get("ifGenerationMatch"):
                found = generation(request, storage, request.query["name"][0])
                if found != expected[0]:
                    response.status = http.HTTPStatus.PRECONDITION_FAILED
                    return
            plain_insert(request, response, storage, *args, **kwargs)

    changed = {plain_download: download, plain_insert: insert}
    patch.setattr(objects, "download", download)  # For `objects.get`.
    for _, methods in server.HANDLERS:
        for method, handler in methods.items():
            if handler in changed:
                patch.setitem(methods, method, changed[handler])


@pytest.fixture(scope="module")
def emulator():
    """Google Cloud Storage's interface on this machine; where it is, for gcsfs and TensorStore."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    address = f"http://localhost:{port}"
    values = {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    }
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    running = server.create_server("localhost", port, in_memory=True, default_bucket="bucket")
    with pytest.MonkeyPatch.context() as patch:
        tell_generations(patch)
        running.start()
        for name, value in values.items():
            patch.setenv(name, value)
        yield values
        running.stop()


@pytest.fixture
def bucket(emulator):
    yield "gs://bucket/run"
    files.remove("gs://bucket/run")


def test_files_are_there_in_whole_or_not_at_all(bucket):
    path = files.as_path(bucket) / "a/b.json"
    files.write_json(path, {"x": 1})
    assert files.read_json(path) == {"x": 1}
    with pytest.raises(RuntimeError), files.atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert files.read_json(path) == {"x": 1}
    files.write_npz(f"{bucket}/c.npz", values=np.arange(3))
    np.testing.assert_array_equal(files.read_npz(f"{bucket}/c.npz")["values"], [0, 1, 2])
    before = files.digest(bucket)
    files.write_json(path, {"x": 2})
    assert files.digest(bucket) != before
    files.remove(bucket)
    assert not path.exists()


def test_an_export_is_uploaded_from_local_copies(bucket, monkeypatch):
    expected = {"README.md": "card", "base/config.json": "{}"}
    for name, text in expected.items():
        files.write_text(f"{bucket}/export/{name}", text)
    found = {}

    def upload(folder, names, repo_id, *, private):
        assert (repo_id, private) == ("me/student", True)
        found.update({name: pathlib.Path(folder / name).read_text() for name in names})
        return "done"

    monkeypatch.setenv("HF_TOKEN", "hf_" + "local" * 6)
    monkeypatch.setattr(push, "upload", upload)
    monkeypatch.setattr(pipeline, "run", lambda config, workdir, mode: files.as_path(workdir))
    config = quickstart.get_config()
    config.push.repo_id = "me/student"
    push.push(config, bucket)
    assert found == expected


def test_stages_are_remembered_and_taken_over(bucket):
    first = Workdir(bucket)
    fingerprint = first.fingerprint({"a": 1}, [])
    files.write_text(first / "out/x.txt", "made")
    first.mark("stage", fingerprint)
    assert Workdir(bucket).done("stage", fingerprint, ["out/x.txt"])
    other = Workdir("gs://bucket/other", [bucket])
    assert other.reuse("stage", fingerprint, ["out/x.txt"])
    assert (other / "out/x.txt").read_text() == "made"


def test_changed_outputs_are_found(bucket):
    names = {"a.json", "kept/1/sums.json", "kept/20/sums.json", "folder/b/c.json", "folder/d.json"}
    for name in names:
        files.write_json(f"{bucket}/{name}", name)
    stages = {
        "train": Stage((), ("kept",), also=("kept/[0-9]*/sums.json", "gone.json"), training=True),
        "made": Stage((), ("a.json", "folder")),
    }
    cache = StageCache(stages, quickstart.get_config(), Workdir(bucket), processes)
    written = [name for stage in stages for name in cache._written(stage)]
    assert sorted(written) == sorted(names)
    Workdir(bucket).mark("made", {}, written=cache._written("made"))
    assert changed(bucket, "made") is None
    files.write_json(f"{bucket}/folder/b/c.json", "other")
    assert changed(bucket, "made") == "folder/b/c.json"


def test_metrics_go_on_where_a_killed_run_had_sent_them(bucket):
    path = files.as_path(bucket) / "metrics.jsonl"

    def steps():
        return [json.loads(line)["step"] for line in path.read_text().splitlines()]

    writer = MetricsWriter(bucket, "distill")
    writer.write(1, {"loss": 1.0})
    writer.write(2, {"loss": 2.0})
    writer.send()
    writer.write(3, {"loss": 3.0})  # Never sent.
    assert steps() == [1, 2]
    with MetricsWriter(bucket, "distill", restored_step=1) as writer:
        writer.write(2, {"loss": 2.5})
    assert steps() == [1, 2]
    assert '"loss": 2.5' in path.read_text()
    assert len(list((files.as_path(bucket) / "tensorboard/distill").glob("events*"))) == 2


def test_a_lock_in_a_bucket(bucket, monkeypatch):
    monkeypatch.setattr(locks, "_SETTLE", 0.1)
    with locks.locked(bucket) as note:
        assert note == ""
        with pytest.raises(UserError, match=f"process {os.getpid()} on"), locks.locked(bucket):
            pass
    files.write_json(f"{bucket}/.lock", {"pid": 7, "machine": "gone", "alive": 0})
    with locks.locked(bucket) as note:
        assert "from process 7 on" in note
    assert not (files.as_path(bucket) / ".lock").exists()


def test_what_reading_needs_is_named():
    with pytest.raises(UserError, match="pip install s3fs"):
        files.as_path("s3://bucket/run")


def test_checkpoints_and_their_damages(bucket):
    directory = files.as_path(bucket) / "checkpoints"
    state = {"params": {"w": jnp.arange(6.0)}}
    with Checkpoints(directory, best_metric="accuracy") as checkpoints:
        checkpoints.save(1, state, extra={"place": 1}, metrics={"accuracy": 0.5})
        checkpoints.save(2, {"params": {"w": jnp.ones(6)}}, extra={"place": 2})
    name = next(path for path in files.files_under(directory / "2/state") if "/d/" in str(path))
    name.write_bytes(name.read_bytes()[:-1])
    with Checkpoints(directory, best_metric="accuracy") as checkpoints:
        restored = checkpoints.restore_like(state)
        assert checkpoints.steps() == [1]
    assert restored.step == 1
    assert restored.extra == {"place": 1}
    np.testing.assert_array_equal(restored.state["params"]["w"], np.arange(6.0))
    assert (directory / "damaged-2").is_dir()


def test_a_sweep_in_a_bucket(bucket, tmp_path, monkeypatch):
    """One process that makes the runs itself, as several hosts' processes do together."""
    (tmp_path / "runs.py").write_text(
        "from tests.sweep.runs import config\n"
        "def get_runs(argument):\n"
        "    return {f'{m}-{s}': config(m, s) for m in ('kpod', 'scotd') for s in (0, 1)}\n"
    )
    begun = []

    def make(config, path, siblings):
        begun.append(path.name)
        assert len(siblings) == 4
        if path.name == broken:
            raise UserError("the third wheel")
        runs.write(path.parent, path.name, config, "1101")

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(pipeline, "run", make)
    monkeypatch.setattr(
        pipeline, "up_to_date", lambda config, path: (path / "results.json").exists()
    )
    broken = "kpod-1"
    assert sweep.run(str(tmp_path / "runs.py"), bucket) == {"kpod-1": "the third wheel"}
    root = files.as_path(bucket)
    assert files.read_json(root / "kpod-1/failure.json")["reason"] == "the third wheel"
    assert begun == ["kpod-0", "kpod-1", "scotd-0", "scotd-1"]
    broken = ""
    assert sweep.run(str(tmp_path / "runs.py"), bucket) == {}
    assert begun[4:] == ["kpod-1"] and not (root / "kpod-1/failure.json").exists()
    found = files.read_json(root / "comparison.json")
    assert [row["name"] for row in found["rows"]] == ["KPOD", "SCoTD"]
    assert not found["notes"] and found["rows"][1]["cells"][0]["against"]["questions"] == 4
    for name in ("comparison.md", "comparison.tex", "report.html"):
        assert (root / name).exists()
    # Where each run is made together with others, the first that fails ends them all.
    broken = "kpod-0"
    files.remove(root / "kpod-0")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(runner.processes, "barrier", lambda name: None)
    monkeypatch.setattr(runner.processes, "run_on_first", lambda work: work())
    with pytest.raises(UserError, match="third wheel"):
        sweep.run(str(tmp_path / "runs.py"), bucket)


@pytest.mark.slow
def test_a_checkpoint_of_several_writes(bucket):
    """Of more than TensorStore sends at once, whose index it writes again and again."""
    state = {f"w{i}": jnp.full(200_000, float(i)) for i in range(120)}
    with Checkpoints(files.as_path(bucket) / "checkpoints") as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 3]
        restored = checkpoints.restore_like(state)
    assert restored.step == 3
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)


@pytest.mark.slow
def test_a_whole_run_in_a_bucket(emulator, bucket, tmp_path):
    """With training; run again nothing is done, and without its last checkpoint a part of it."""
    command = [sys.executable, "-m", "kpod_jax.main", "--config=configs/quickstart.py", *SMALL]
    directory = files.as_path(bucket)

    def run(expected: str) -> str:
        done = subprocess.run(
            [*command, f"--workdir={bucket}"],
            cwd=ROOT,
            env=environment(tmp_path) | emulator,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
        return (directory / "predictions/test.jsonl").read_text()

    predictions = run("report: ")
    steps = directory / "checkpoints/student"
    assert {"18", "20"} <= {path.name for path in steps.iterdir()}
    assert run("eval: up to date") == predictions
    files.remove(steps / "20")
    files.remove(directory / ".stages/distill.json")
    assert run("distill: 20 steps") == predictions
    assert not pathlib.Path(ROOT / "gs:").exists()
    assert (directory / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert report.write(bucket)
