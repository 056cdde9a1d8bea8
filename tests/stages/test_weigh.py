"""What the weighing stage writes and says."""

import types
from typing import Any

from kpod_jax import files
from kpod_jax.stages import weigh as stage
from kpod_jax.weighting import weigh
from kpod_jax.workdir import Workdir
from tests.weighting import tiny


def test_the_objective_is_told_beside_those_of_keeping_all_and_none(tmp_path, monkeypatch):
    data = tiny.copying(4, 0)
    figures = {"objective": 0.754, "keep_all": 1.004, "keep_none": 2.0}
    summary = figures | {"gap": {"none_masked": 0.5, "all_masked": 2.0}, "mean_weight": 0.25}
    result = weigh.Result(data.targets, data.targets, summary | {"auc": None})
    monkeypatch.setattr(weigh, "weigh", lambda *_, **__: result)
    weighting = types.SimpleNamespace(fit="same", answerer="")
    student = types.SimpleNamespace(lora=types.SimpleNamespace(rank=0))
    run: Any = types.SimpleNamespace(
        config=types.SimpleNamespace(weighting=weighting, student=student, seed=0),
        records=lambda split: [],
        tokenize=lambda records: (data, None),
        train_set=data,
        student=None,
        mesh=None,
        workdir=Workdir(tmp_path),
    )
    message = stage.run_stage(run)
    assert "objective 0.75 (all kept 1.00, none 2.00)" in message and "gap 1.50 nats" in message
    written = files.read_json(tmp_path / "weighting.json")
    assert {key: written[key] for key in figures} == figures
