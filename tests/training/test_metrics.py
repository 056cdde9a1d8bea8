import json

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from kpod_jax.training.metrics import MetricsWriter, OneStepLate
from kpod_jax.utils.errors import UserError

# Protobuf makes these when it is imported, where no type checker sees them.
Event, SessionLog = getattr(event_pb2, "Event"), getattr(event_pb2, "SessionLog")  # noqa: B009


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def events(directory):
    """All TensorBoard events under a directory, in order, their checksums checked."""
    result = []
    for path in sorted(directory.iterdir(), key=lambda p: p.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            body, data = data[12 : 12 + size], data[12 + size :]
            assert masked_crc32c(body) == int.from_bytes(data[:4], "little")
            data = data[4:]
            result.append(Event.FromString(body))
    return result


def scalars(directory):
    """(tag, step, value) as TensorBoard shows them: a restart hides what is from its step on."""
    shown = []
    for event in events(directory):
        if event.session_log.status == SessionLog.START:
            shown = [item for item in shown if item[1] < event.step]
        shown += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
    return shown


def test_writes_lines_and_tensorboard_scalars(tmp_path):
    with MetricsWriter(tmp_path / "new", "distill") as writer:
        writer.write(0, {"loss": 0.5, "tokens": 7, "note": "É"})
        writer.write(1, {"loss": float("nan"), "best": None})
        assert rows(tmp_path / "new") == [
            {"stage": "distill", "step": 0, "loss": 0.5, "tokens": 7, "note": "É"},
            {"stage": "distill", "step": 1, "loss": None, "best": None},
        ]
    shown = scalars(tmp_path / "new" / "tensorboard" / "distill")
    assert shown[:2] == [("loss", 0, 0.5), ("tokens", 0, 7.0)]
    assert shown[2][:2] == ("loss", 1)


def test_a_resumed_stage_reads_as_one_run(tmp_path):
    with MetricsWriter(tmp_path, "weigh") as writer:
        writer.write(9, {"loss": 9.0})
    with MetricsWriter(tmp_path, "distill") as writer:
        for step in range(6):
            writer.write(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "distill", "st')  # Killed here.
    with MetricsWriter(tmp_path, "distill", restored_step=2) as writer:
        writer.write(3, {"loss": 30.0})
    found = [(row["stage"], row["step"], row["loss"]) for row in rows(tmp_path)]
    assert found == [
        ("weigh", 9, 9.0),
        ("distill", 0, 0.0),
        ("distill", 1, 1.0),
        ("distill", 2, 2.0),
        ("distill", 3, 30.0),
    ]
    assert [item[2] for item in scalars(tmp_path / "tensorboard" / "distill")] == [0, 1, 2, 30]


def test_a_stage_that_starts_anew_removes_its_own_alone(tmp_path):
    for stage in ("weigh", "distill"):
        with MetricsWriter(tmp_path, stage) as writer:
            writer.write(0, {"loss": 1.0})
    with MetricsWriter(tmp_path, "distill") as writer:
        writer.write(4, {"loss": 2.0})
    assert [(row["stage"], row["step"]) for row in rows(tmp_path)] == [("weigh", 0), ("distill", 4)]
    assert scalars(tmp_path / "tensorboard" / "distill") == [("loss", 4, 2.0)]
    assert scalars(tmp_path / "tensorboard" / "weigh") == [("loss", 0, 1.0)]


def test_a_spoiled_file_is_named_with_its_line_and_left_alone(tmp_path):
    text = '{"stage": "weigh", "step": 0}\nnot json\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2 is not .*got b'not json"):
        MetricsWriter(tmp_path, "distill")
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricsWriter(tmp_path / "run", "distill") as writer:
        writer.write(0, {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_a_directory_that_refuses_is_an_error_for_the_user(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file.*[Nn]ot a directory|file.*[Ff]ile exists"):
        MetricsWriter(tmp_path / "file", "distill")


def test_metrics_come_one_step_late_and_none_is_lost():
    late = OneStepLate()
    assert late.flush() is None
    done = [late.push(step, {"loss": jnp.float32(step / 2)}) for step in range(3)]
    assert done == [None, (0, {"loss": 0.0}), (1, {"loss": 0.5})]
    assert late.flush() == (2, {"loss": 1.0})
    assert late.flush() is None


def test_metrics_are_plain_numbers_from_any_mesh():
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    late = OneStepLate()
    late.push(7, {"loss": jax.device_put(jnp.float32(0.25), replicated), "tokens": jnp.int32(3)})
    done = late.flush()
    assert done == (7, {"loss": 0.25, "tokens": 3})
    assert json.dumps(done) == '[7, {"loss": 0.25, "tokens": 3}]'
