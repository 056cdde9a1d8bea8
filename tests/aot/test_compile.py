"""Steps for devices that are not there: their arguments, whether they fit, and what is said."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest

from configs import flan_t5_xl, llama_7b, quickstart, t5_base
from kpod_jax.aot import compile, steps
from kpod_jax.models.t5_config import T5Config
from kpod_jax.training import costs
from kpod_jax.utils.errors import UserError
from tests.models import test_llama
from tests.models import tiny as tiny_models
from tests.tools import batch_source
from tests.weighting import tiny

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU's compiler, libtpu, is not installed",
)


def one_device(config) -> steps.Job:
    return steps.make_job(config, jax.devices()[:1])


def step_of(config, name):
    return next(iter(steps.job_steps(one_device(config), [name])))


def report(**changes) -> compile.Report:
    where = {"parameters": 10, "optimiser state": 20, "gradients": 10, "logits": 1}
    values = {
        "name": "train",
        "fits": False,
        "argument_bytes": 30,
        "output_bytes": 0,
        "temporary_bytes": 31,
        "peak_bytes": 61,
        "beside_bytes": 0,
        "hbm_bytes": 50,
        "where": where | {"activations": 20},
        "flops": 1e9,
        "counted": None,
        "collectives": {"all-reduce": costs.Collective(3, 12)},
        "sent_bytes": 24,
        "seconds": 1.0,
    }
    return compile.Report(**(values | changes))


@pytest.mark.parametrize("pack", [0, 40])
def test_the_batch_is_that_of_the_data(pack):
    source = batch_source(
        tiny.random_set(4, 0), 4, 0, pad_id=0, decoder_start_id=0, pack_length=pack
    )
    batch = source[0]
    del batch["index"]
    source_size, target_size = batch["input_ids"].shape[1], batch["targets"].shape[1]
    mesh = one_device(quickstart.get_config()).mesh
    made = steps.batch_of(4, source_size, target_size, mesh, packed=pack > 0)
    assert {name: (x.shape, x.dtype) for name, x in made.items()} == {
        name: (x.shape, x.dtype) for name, x in batch.items()
    }


def test_a_batch_that_the_devices_do_not_divide_is_turned_down():
    config = quickstart.get_config()
    config.distill.batch_size = 12
    run = steps.make_job(config, jax.devices())
    with pytest.raises(UserError, match="12 rows cannot be split over 8 devices"):
        steps.train_step(run)


@pytest.mark.parametrize(
    ("config", "parameters", "trained"),
    [
        (t5_base, 247_577_856, 247_577_856),
        # 2 x 24 + 24 attentions with adapters of rank 128 at q and v; the base has 2.85 billion.
        (flan_t5_xl, 2_849_757_184 + 72 * 2 * 2 * 2048 * 128, 72 * 2 * 2 * 2048 * 128),
        (llama_7b, 6_738_415_616 + 32 * 2 * 2 * 4096 * 64, 32 * 2 * 2 * 4096 * 64),
    ],
)
def test_named_architectures_need_no_files(config, parameters, trained):
    """Numbers of parameters are those of the published models."""
    run = one_device(config.get_config())
    made = run.student.abstract(run.mesh)

    def count(tree):
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))

    assert count(made) == parameters
    assert count(run.student.split(made)[0]) == trained


def test_a_step_computes_six_operations_a_parameter_and_token():
    """And what attention adds: less than a third at these lengths."""
    config = t5_base.get_config()
    step = step_of(config, "train")
    traced = step.function.trace(*step.arguments)
    c = one_device(config).student.config
    assert isinstance(c, T5Config)
    inner, mlp = 4 * c.d_model * c.num_heads * c.d_kv, 3 * c.d_model * c.d_ff
    encoder = c.num_layers * (inner + mlp)
    decoder = c.num_decoder_layers * (2 * inner + mlp) + c.d_model * c.vocab_size
    tokens = 32
    expected = 6 * tokens * (256 * encoder + 512 * decoder)
    # Keys and values of the encoder's output, not of the decoder's tokens; logits made twice.
    expected += 6 * tokens * (256 - 512) * c.num_decoder_layers * inner / 2
    expected += 2 * tokens * 512 * c.d_model * c.vocab_size
    found = costs.flops(traced.jaxpr)
    assert 1 < found / expected < 1.33


def test_arguments_are_what_the_jitted_steps_take():
    """Each step of a tiny job is lowered for a CPU from them."""
    config = quickstart.get_config()
    config.weighting.batch_size = 4
    names = []
    for step in steps.job_steps(one_device(config), steps.STEPS):
        names.append(step.name)
        step.function.trace(*step.arguments)
        inside = compile.bytes_on_a_device(step.arguments[:2])
        assert 0 < inside <= compile.bytes_on_a_device(tuple(step.parts.values())) + 8
    assert tuple(names) == steps.STEPS


def test_uniform_weights_have_no_weighting_steps():
    run = one_device(quickstart.get_config("scotd"))
    names = [step.name for step in steps.job_steps(run, ("fit", "learn"))]
    assert names == []


def test_bytes_are_those_of_one_device():
    config = quickstart.get_config()
    config.mesh.fsdp, config.mesh.data = 8, 1
    run = steps.make_job(config, jax.devices())
    split = compile.bytes_on_a_device(run.student.abstract(run.mesh))
    config = quickstart.get_config()
    whole_run = steps.make_job(config, jax.devices())
    whole = compile.bytes_on_a_device(whole_run.student.abstract(whole_run.mesh))
    assert whole / 8 <= split < whole / 7
    loose = jax.ShapeDtypeStruct((3, 5), np.int32)
    assert compile.bytes_on_a_device([loose, loose]) == 120


def test_what_fits():
    assert compile.fits(98, 100)
    assert not compile.fits(99, 100)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Ran out of memory in memory space hbm. Used 57.50G of 15.75G hbm.", 57.5 * 2**30),
        ("total memory required for HLO temporaries (18.5G) exceeds available", 18.5 * 2**30),
        ("Used 512.0M of 15.75G hbm", 2**29),
        ("no numbers", 0),
    ],
)
def test_the_compilers_messages_are_read(message, expected):
    assert compile.exhausted_bytes(message) == expected


def test_temporaries_are_divided_up_to_what_there_is():
    split = compile.split_temporaries
    known = {"gradients": 30, "logits": 20}
    assert split(100, known) == {"gradients": 30, "logits": 20, "activations": 50}
    assert split(40, known) == {"gradients": 30, "logits": 10, "activations": 0}


def test_lines_say_what_is_needed_and_where_it_goes():
    text = compile.describe(report(hbm_bytes=10**9, peak_bytes=2 * 10**9), 4)
    assert "does NOT fit: 2.00 of 1.0 GB" in text
    assert "3 all-reduce" in text and "on 4 devices" in text
    assert "no collectives" in compile.describe(report(collectives={}), 4)


def test_advice_names_the_keys_that_help():
    config = t5_base.get_config()
    said = compile.advice(report(), config, 16)
    for key in ("mesh.fsdp=16", "student.lora.rank", "student.remat=full", "distill.batch_size"):
        assert key in said
    assert "weighting.answerer" in compile.advice(report(name="fit"), config, 16)
    assert "eval.batch_size" in compile.advice(report(name="decode"), config, 16)
    config.student.remat = "full"
    assert "remat" not in compile.advice(report(), config, 16)
    little = dict.fromkeys(report().where, 1)
    said = compile.advice(report(where=little), config, 16)
    assert "more devices" in said


def test_without_the_compiler_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jax\[tpu\]"):
        compile.compile_for(t5_base.get_config(), "v5e:4x4")


def test_a_step_that_does_not_exist():
    with pytest.raises(UserError, match=r"unknown step 'tran'. Expected one of train, fit"):
        compile.compile_for(t5_base.get_config(), "v5e:4x4", names=["tran"])


def test_devices_of_which_nothing_is_known_are_named():
    config = quickstart.get_config()
    with pytest.raises(UserError, match="Unknown device kind 'cpu'"):
        compile.compile_step(step_of(config, "train"), one_device(config).mesh)


@needs_compiler
@pytest.mark.parametrize("topology", ["v5e", "v99:2x2", "v5e:0x2"])
def test_topologies_that_do_not_exist(topology):
    with pytest.raises(UserError, match=rf"--topology={topology}.*v5e:4x4"):
        compile.topology_devices(topology)


@needs_compiler
@pytest.mark.parametrize(
    ("topology", "count"), [("v5e:1x1", 1), ("v5e:2x2", 4), ("v4:2x2x1", 4), ("v5p:1x1x1", 1)]
)
def test_a_device_is_a_chip(topology, count):
    assert len(compile.topology_devices(topology)) == count


@needs_compiler
@pytest.mark.slow
def test_a_train_step_is_compiled_for_two_slices():
    """Only `data` goes across slices: 4x4 chips each, split over fsdp."""
    devices = compile.topology_devices("2xv5e:4x4")
    assert [device.slice_index for device in devices] == [0] * 16 + [1] * 16
    config = quickstart.get_config()
    config.mesh.data, config.mesh.fsdp, config.distill.batch_size = 2, 16, 32
    job = steps.make_job(config, devices)
    slices = np.vectorize(lambda device: device.slice_index)(job.mesh.devices)
    assert (slices == np.array([0, 1])[:, None, None]).all()
    found = compile.compile_step(steps.train_step(job), job.mesh)
    assert found.fits and found.collectives["all-reduce"].count > 0


@pytest.fixture
def optimised():
    """As a user's steps are compiled, and not as those of tests."""
    key = "jax_disable_most_optimizations"
    before = jax.config.values[key]
    jax.config.update(key, False)
    yield
    jax.config.update(key, before)


@needs_compiler
def test_a_tiny_student_is_compiled_for_four_chips(tmp_path, capsys, optimised):
    config = quickstart.get_config()
    (found,) = compile.compile_for(config, "v5e:2x2", str(tmp_path), ["decode"])
    assert found.fits and 0 < found.peak_bytes < 10**9
    # The compiler counts the products that we count, and some element-wise operations.
    assert found.counted is not None and 1 <= found.counted < 1.2
    stored = json.loads((tmp_path / "compile.json").read_text())
    assert stored["device_kind"] == "TPU v5 lite" and stored["mesh"]["data"] == 4
    assert stored["steps"] == [json.loads(json.dumps(dataclasses.asdict(found)))]
    assert "decode: fits" in capsys.readouterr().out


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["qwen3-windows", "olmo2", "smollm3", "phi4-mini", "gemma3", "mt5"]
)
def test_every_family_is_compiled_for_a_mesh(tmp_path, kind):
    """Layers that differ, norms over all heads and partial rotation are split over chips, too."""
    torch_model = tiny_models.torch_t5 if kind == "mt5" else test_llama.torch_model
    torch_model(tmp_path / kind, kind)
    config = quickstart.get_config("scotd")
    config.student.model, config.student.init = str(tmp_path / kind), "random"
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, 2, 2
    config.student.max_question_tokens = config.student.max_target_tokens = 16
    config.distill.batch_size = config.eval.batch_size = 4
    config.eval.max_new_tokens = 16
    found = compile.compile_for(config, "v5e:2x2", names=["train", "decode"])
    assert [step.fits for step in found] == [True, True]
