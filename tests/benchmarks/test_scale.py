"""The model of a step's cost, and the results of compilers that its tables are made of."""

import json
import pathlib

import jax
import pytest

from benchmarks import scale
from configs import flan_t5_large, llama_7b
from kpod_jax.aot import steps
from kpod_jax.training import costs
from tests.conftest import ROOT

MESH = {"data": 1, "fsdp": 4, "tensor": 4}


def job(step: str, flops: float, **changes) -> dict:
    """As `compile.json` has it."""
    made = {
        "name": step,
        "fits": True,
        "peak_bytes": 3 * 10**9,
        "beside_bytes": 0,
        "where": {"parameters": 2 * 10**9, "activations": 10**9, "logits": 0},
        "flops": flops,
        "counted": 1.0,
        "sent_bytes": 10**9,
        "seconds": 5.0,
    }
    found = {
        "student": "google/flan-t5-large",
        "topology": "v5e:4x4",
        "device_kind": "TPU v5 lite",
        "mesh": MESH,
        "batch_size": 4,
        "lengths": [256, 512],
        "remat": "dots",
        "lora": 0,
        "steps": [made],
    }
    return found | changes


def test_new_results_add_to_those_that_are_kept_or_take_their_place():
    kept = [job("train", 1e12), job("train", 2e12, batch_size=8)]
    found = scale.merged([*kept, job("decode", 3e12), job("train", 4e12)])
    by_name = {name: [s["name"] for s in made["steps"]] for name, made in found.items()}
    assert by_name == {
        "flan-t5-large-v5e-4x4-mesh-1x4x4-rows-4": ["train", "decode"],
        "flan-t5-large-v5e-4x4-mesh-1x4x4-rows-8": ["train"],
    }
    first, _ = found.values()
    assert [step["flops"] for step in first["steps"]] == [4e12, 3e12]
    assert len(scale.compiled_table(list(found.values()))) == 2 + 3
    assert len(scale.model_table(list(found.values()))) == 2 + 2


def test_tables_stand_in_the_document_as_results_are_kept():
    kept = scale.merged(scale.read_compiled(ROOT / "benchmarks/compiled", "*.json"))
    assert {path.stem for path in (ROOT / "benchmarks/compiled").iterdir()} == kept.keys()
    text = pathlib.Path(ROOT / "docs/scale.md").read_text()
    for row in scale.compiled_table(list(kept.values())):
        assert row in text.split("\n")


@pytest.mark.parametrize("module", [flan_t5_large, llama_7b])
def test_the_model_counts_the_operations_of_the_traced_step(module):
    """The model leaves out adapters, norms and the masks' part of attention."""
    config = module.get_config()
    config.mesh.data, config.mesh.fsdp = 1, 1
    config.student.attention = "xla"  # As on a TPU.
    run = steps.make_job(config, jax.devices()[:1])
    step = steps.train_step(run)
    counted = costs.flops(step.function.trace(*step.arguments).jaxpr)
    modelled = scale.train_flops(
        config.student.model,
        config.distill.batch_size,
        config.student.max_question_tokens,
        config.student.max_target_tokens,
        remat=config.student.remat,
        lora=config.student.lora.rank,
    )
    assert modelled == pytest.approx(counted, rel=0.08)


def test_what_a_device_sends_and_reads_by_hand():
    parameters, alone = 10**9, {"data": 1, "fsdp": 1, "tensor": 1}
    assert scale.train_sent(alone, parameters, parameters) == 0
    assert scale.train_sent(alone | {"data": 8}, parameters, parameters) == 4 * parameters
    # Weights twice and gradients once, in bfloat16; without `data` no more.
    assert scale.train_sent(alone | {"fsdp": 8}, parameters, parameters) == 6 * parameters
    assert scale.train_sent(MESH, parameters, 0) == parameters
    model = "google/flan-t5-large"
    whole, split = (scale.train_traffic(model, mesh, 4, 256, 512) for mesh in (alone, MESH))
    assert whole / 16 < split < whole / 4
    adapters = scale.train_traffic(model, alone, 4, 256, 512, lora=8)
    assert whole - adapters == 28 * scale.matrix_parameters(model)


def test_results_are_read_from_any_depth(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/compile.json").write_text(json.dumps(job("train", 1e12)))
    assert scale.read_compiled(tmp_path)[0]["batch_size"] == 4
