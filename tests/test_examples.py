"""What is one's own, as the examples have it: a method, a curriculum, a loss, data, a family."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
import transformers

from configs import quickstart
from examples.gemma import Gemma, GemmaConfig
from examples.label_smoothing import SMOOTHING, label_smoothing
from examples.seed_oss import SeedOssConfig
from examples.sums import SIZES, Sums
from kpod_jax import pipeline
from kpod_jax.baselines.mcc_kd import MccKd
from kpod_jax.cli import checks
from kpod_jax.data import answers, sources
from kpod_jax.data.records import Record
from kpod_jax.models import hub
from kpod_jax.models.llama import Llama
from kpod_jax.models.student import load_student
from kpod_jax.parallel import sharding
from kpod_jax.schedule import curricula
from kpod_jax.stages import STAGES
from kpod_jax.training import losses, train_step
from kpod_jax.utils import plugins
from kpod_jax.utils.errors import UserError
from kpod_jax.weighting import weightings
from tests.conftest import LLAMA_JSON, ROOT
from tests.tools import fingerprint

TINY = str(ROOT / "kpod_jax/assets/tiny_t5")
GEMMA_JSON = LLAMA_JSON | {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 16}
OWN = {
    "data.name": "examples.sums:Sums",
    "schedule.curriculum": "examples.longest_first:LongestFirst",
    "distill.loss": "examples.label_smoothing:label_smoothing",
    "student.family": "examples.gemma:GEMMA",
}
SMALL = {
    "weighting.weights": "uniform",
    "student.init": "random",
    "student.tokenizer": TINY,
    "student.scan_layers": False,
    "data.train_examples": 16,
    "data.validation_examples": 4,
    "data.test_examples": 4,
    "distill.epochs": 2,
    "distill.batch_size": 8,
    "distill.buckets": 1,
    "distill.log_every": 1,
    "distill.checkpoint_every": 1,
    "distill.max_to_keep": 9,
    "eval.max_new_tokens": 4,
    "schedule.phase_steps": 0,
}


def config_of(model: str, **changes):
    config = quickstart.get_config("kpod")
    config.update_from_flattened_dict({**OWN, **SMALL, "student.model": model})
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@pytest.fixture(scope="module")
def gemma_json(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("gemma") / "config.json"
    path.write_text(json.dumps(GEMMA_JSON))
    return str(path)


@pytest.mark.parametrize(
    "name", ["last_step", "longest_first", "results", "label_smoothing", "sums", "any_of"]
)
def test_the_documents_code_is_the_examples(name):
    page = (ROOT / "docs/extending.md").read_text()
    code = (ROOT / f"examples/{name}.py").read_text()
    assert f"`examples/{name}.py`" in page and f"```python\n{code}```" in page


def test_a_whole_run_of_ones_own(here, gemma_json, tmp_path, capsys):
    """Data, curriculum, loss and family together; then a part of it again from a checkpoint."""
    config = config_of(gemma_json)
    checks.check(config)
    workdir = pipeline.run(config, tmp_path / "run")
    records = [json.loads(line) for line in (workdir / "records/train.jsonl").open()]
    assert [len(record["steps"]) for record in records] == [2] * 16
    rows = np.load(workdir / "schedule.npz")["start_steps"]
    assert rows.tolist() == [[2] * 16, [1] * 16]
    steps = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    steps = [row for row in steps if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert steps[0]["loss"] == pytest.approx(np.log(1024), rel=0.05)  # Of random values.
    assert json.loads((workdir / "results.json").read_text())["total"] == 4
    predictions = [json.loads(line) for line in (workdir / "predictions/test.jsonl").open()]
    assert len(predictions) == 4 and any(row["prediction"] for row in predictions)

    # Killed after the second step it goes on to the same bits.
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    for step in (3, 4):
        shutil.rmtree(again / f"checkpoints/student/{step}")
    note = again / ".stages/distill.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"complete": False}))
    pipeline.run(config, again, "distill")
    expected, found = (
        ocp.PyTreeCheckpointer().restore(path / "checkpoints/student/4/state")["params"]
        for path in (workdir, again)
    )
    jax.tree.map(np.testing.assert_array_equal, expected, found)
    capsys.readouterr()
    pipeline.run(config, again)
    assert capsys.readouterr().out.count("up to date") == 5

    # Exported, it is transformers' Gemma.
    pipeline.run(config, workdir, "export")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(workdir / "export")
    assert isinstance(model, transformers.GemmaForCausalLM)
    table: Any = model.get_input_embeddings()
    np.testing.assert_array_equal(table.weight.detach().numpy(), expected["shared"]["embedding"])


@pytest.mark.parametrize(
    ("key", "file", "stages"),
    [
        ("data.name", "sums", {"rationales"}),
        ("schedule.curriculum", "longest_first", {"schedule", "distill"}),
        ("distill.loss", "label_smoothing", {"distill"}),
        (
            "student.family",
            "gemma",
            {"rationales", "weigh", "score", "schedule", "distill", "eval"},
        ),
        ("weighting.weights", "results", {"weigh"}),
        ("eval.ood", "sums", {"eval"}),
    ],
)
def test_a_changed_file_makes_its_stages_stale(
    gemma_json, tmp_path, monkeypatch, key, file, stages
):
    name = f"own_{file}_{key.partition('.')[0]}"
    code = tmp_path / f"{name}.py"
    shutil.copy(ROOT / f"examples/{file}.py", code)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = OWN | {"weighting.weights": "examples.results:results", "eval.ood": OWN["data.name"]}
    of_key = own[key].replace(f"examples.{file}", name)
    given = (of_key,) if key == "eval.ood" else of_key
    config = config_of(gemma_json, **{key.replace(".", "__"): given})
    checks.check(config)
    (tmp_path / "run/records").mkdir(parents=True)
    written = (*STAGES["rationales"].outputs, "step_difficulty.npz", "schedule.npz")
    for name in written:
        (tmp_path / "run" / name).write_text("")
    (tmp_path / "run/token_weights.npz").write_text("")
    names = ("rationales", "weigh", "score", "schedule", "distill", "eval")
    before = {name: fingerprint(config, tmp_path / "run", name) for name in names}
    code.write_text(code.read_text() + "\n# Changed.\n")
    after = {name: fingerprint(config, tmp_path / "run", name) for name in names}
    assert {name for name in names if before[name] != after[name]} == stages


@pytest.mark.parametrize("key", [*OWN, "method", "weighting.weights"])
@pytest.mark.parametrize("name", ["nowhere.at_all:Mine", "examples.sums:Mine"])
def test_a_wrong_import_path_is_told_before_anything_begins(gemma_json, key, name):
    config = config_of(gemma_json, **{key.replace(".", "__"): name})
    with pytest.raises(UserError, match=re.escape(f"{key}={name!r} cannot be imported")):
        checks.check(config)


def test_what_is_no_import_path_is_told_as_well(gemma_json):
    config = config_of(gemma_json, distill__loss="focal", student__family="gemma")
    with pytest.raises(UserError) as told:
        checks.check(config)
    assert "distill.loss='focal': expected one of cross_entropy, or package" in str(told.value)
    assert "student.family='gemma': expected one of '', or package" in str(told.value)


class Nothing:
    pass


class Rowless(sources.custom.CustomDataSet):  # pyright: ignore
    pass


def scalar(logits, targets):
    return -jnp.mean(logits)


NOTHING = 3
HERE = "tests.test_examples"


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [
        ("data.name", "Nothing", "is not a subclass of kpod_jax.data.custom.CustomDataSet"),
        ("data.name", "Rowless", "does not implement rows"),
        ("eval.ood", "Nothing", "is not a subclass of kpod_jax.data.custom.CustomDataSet"),
        ("distill.loss", "NOTHING", "is not a function"),
        ("distill.loss", "scalar", "expected one loss per token: shape (2, 3), float32"),
        ("student.family", "Nothing", "is not a kpod_jax.models.families.Family"),
        ("method", "Nothing", "is not a subclass of kpod_jax.baselines.protocol.Method"),
    ],
)
def test_what_is_of_the_wrong_kind_is_told_as_early(gemma_json, key, name, said):
    given = f"{HERE}:{name}"
    given = (given,) if key == "eval.ood" else given
    config = config_of(gemma_json, **{key.replace(".", "__"): given})
    with pytest.raises(UserError, match=re.escape(said)):
        checks.check(config)


def test_a_family_is_named_for_its_model_types_alone(gemma_json, tmp_path):
    with pytest.raises(
        UserError, match=r"'gemma' in config\.json is not supported.*student\.family"
    ):
        load_student(gemma_json, init="random", tokenizer=TINY)
    # Beside it those of the package are read as ever, such as an answerer's.
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_JSON))
    plain = load_student(
        str(tmp_path / "config.json"), family=OWN["student.family"], init="random", tokenizer=TINY
    )
    assert type(plain.module) is Llama


def test_a_loss_of_ones_own_counts_as_cross_entropy_does():
    """Σ weight · loss, without logits of what is not supervised, in chunks of any size."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(8, 40, 6)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(6, 11)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 11, (8, 40)), jnp.int32)
    supervised = jnp.asarray(rng.random((8, 40)) < 0.5)
    weights = jnp.asarray(rng.random((8, 40)), jnp.float32)
    own = losses.token_loss_of(OWN["distill.loss"])
    log_p = np.asarray(jax.nn.log_softmax(hidden @ head), np.float64)
    picked = np.take_along_axis(log_p, np.asarray(targets)[..., None], -1)[..., 0]
    expected = -(1 - SMOOTHING) * picked - SMOOTHING * log_p.mean(-1)
    np.testing.assert_allclose(own(hidden @ head, targets), expected, rtol=1e-5)
    for chunk in (None, 7):
        total, found = losses.weighted_token_losses(
            hidden, targets, supervised, weights, lambda x: x @ head, chunk, token_loss=own
        )
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, np.where(supervised, expected, 0), rtol=1e-5)
        np.testing.assert_allclose(total, (expected * weights)[supervised].sum(), rtol=1e-5)


def test_a_loss_of_ones_own_is_for_methods_that_have_none():
    assert train_step.loss_of("cross_entropy") is train_step.cross_entropy
    with pytest.raises(UserError, match="the method already defines a loss"):
        train_step.loss_of(OWN["distill.loss"], MccKd.config_errors)  # pyright: ignore


def test_data_of_ones_own_is_judged_as_files_are(tmp_path, monkeypatch):
    found, bad = sources.load_records(OWN["data.name"], "train", limit=3)
    assert len(found) == 3 and not bad and found[0].id == "train-0"
    assert found == sources.load_records(OWN["data.name"], "train", limit=3)[0]
    total = eval_sum(found[0].question)
    assert found[0].answer == str(total) and found[0].steps[1].endswith(f"= {total}.")
    names = tmp_path / "names.txt"
    names.write_text("Zoe")
    named, _ = sources.load_records(OWN["data.name"], "train", path=str(names), limit=1)
    assert named[0].question.startswith("Zoe")
    assert sources.input_files(OWN["data.name"], str(names), "paper") == [names]
    assert sources.answer_kind(OWN["data.name"]) == "number"

    rows = [*Sums("").rows("test")]
    assert len(rows) == SIZES["test"]
    broken = [rows[0] | {"id": "a"}, {"question": "1 + 1?"}, "text", rows[1] | {"id": "a"}]
    monkeypatch.setattr(Sums, "rows", lambda self, split: broken)
    found, bad = sources.load_records(OWN["data.name"], "test", max_rejected_fraction=1)
    assert [record.id for record in found] == ["a"]
    reasons = " ".join(one.reason for one in bad)
    assert "has no 'answer'" in reasons and "is 'text'; expected a mapping" in reasons
    assert "repeats the id 'a' of" in reasons


def eval_sum(question: str) -> int:
    return sum(map(int, re.findall(r"\d+", question)))


def test_a_curriculum_of_ones_own_is_the_documents():
    made = plugins.load(OWN["schedule.curriculum"], "schedule.curriculum")
    setting = dataclasses.make_dataclass("Setting", ["num_steps"])(np.array([1, 3, 2]))
    name = OWN["schedule.curriculum"]
    rows = [curricula.make(name, setting).start_steps(t).tolist() for t in range(5)]
    assert isinstance(curricula.make(name, setting), made)
    assert rows == [[1, 3, 2], [1, 2, 2], [1, 1, 1], [0, 0, 0], [0, 0, 0]]


def test_a_weighting_of_ones_own_is_the_documents():
    weighting = weightings.load("examples.results:results")
    record, spans = Record("a", "", ("3 + 4 = 7 pens",), "7"), [(0, 1), (4, 5), (7, 9), (10, 14)]
    setting: Any = types.SimpleNamespace(records=[record], spans=[[*spans, (6, 9)]])
    assert weighting(setting) == [[0.2, 0.2, 1.0, 0.2, 1.0]]


@pytest.fixture(scope="module")
def transformers_gemma(tmp_path_factory):
    """A Gemma of transformers with norms that do something, and its directory."""
    torch.manual_seed(0)
    value = {key: size for key, size in GEMMA_JSON.items() if key != "model_type"}
    config = transformers.GemmaConfig(**value, pad_token_id=0, eos_token_id=1, bos_token_id=2)
    model = transformers.GemmaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    directory = tmp_path_factory.mktemp("gemma_weights")
    model.save_pretrained(directory)
    return model, str(directory)


def test_gemma_is_transformers(transformers_gemma, tmp_path):
    model, directory = transformers_gemma
    student = load_student(directory, family=OWN["student.family"], tokenizer=TINY)
    assert isinstance(student.module, Gemma) and isinstance(student.config, GemmaConfig)
    assert student.decoder_only
    mesh = sharding.make_mesh()
    params = student.load(mesh)
    ids = np.random.default_rng(0).integers(3, 1000, (2, 9))
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()[:, 4:]
    variables, mask = {"params": params}, np.ones((2, 4), bool)
    hidden = student.module.apply(variables, ids[:, :4], mask, ids[:, 4:])
    found: Any = student.module.apply(variables, hidden, method="logits")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # What is exported is what was loaded.
    hub.save_pretrained(tmp_path, student.config, params)
    names = sorted(file for file in os.listdir(tmp_path) if file.endswith(".safetensors"))
    assert names == ["model.safetensors"]
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_seed_oss_is_transformers(tmp_path):
    torch.manual_seed(0)
    value = {key: size for key, size in LLAMA_JSON.items() if key != "model_type"}
    model = transformers.SeedOssForCausalLM(transformers.SeedOssConfig(**value)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # Biases that do something.
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    student = load_student(str(tmp_path), family="examples.seed_oss:SEED_OSS", tokenizer=TINY)
    ids = np.random.default_rng(0).integers(3, 1000, (2, 9))
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()[:, 4:]
    variables, mask = {"params": student.load(sharding.make_mesh())}, np.ones((2, 4), bool)
    hidden = student.module.apply(variables, ids[:, :4], mask, ids[:, 4:])
    found: Any = student.module.apply(variables, hidden, method="logits")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(UserError, match="attention_out_bias is true"):
        SeedOssConfig.from_json({"model_type": "seed_oss", "attention_out_bias": True})


def test_a_judge_of_ones_own_is_the_documents():
    judge = "examples.any_of:any_of"
    said = "Therefore, the answer is New York."
    assert answers.answers_equal(said, "NYC | new york", judge)
    assert not answers.answers_equal(said, "NYC | York", judge)
    assert len((ROOT / "examples/seed_oss.py").read_text().splitlines()) < 40


def test_a_file_may_be_anywhere_on_the_path():
    assert [pathlib.Path(file) for file in plugins.source_files(OWN["distill.loss"])] == [
        ROOT / "examples/label_smoothing.py"
    ]
    assert label_smoothing.__module__ == "examples.label_smoothing"
