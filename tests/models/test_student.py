"""Students: where their parameters come from, and whether their tokenizer fits."""

import json
import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import transformers

from kpod_jax.models import hub, layout
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.student import load_student
from kpod_jax.models.t5 import T5
from kpod_jax.models.t5_config import T5Config
from kpod_jax.parallel import sharding
from kpod_jax.utils.errors import UserError
from tests.models import tiny


def tokenizer(words=60):
    vocabulary = {"<unk>": 0, "</s>": 1, "<pad>": 2} | {f"w{i}": i + 3 for i in range(words)}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="<unk>")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model),
        unk_token="<unk>",
        eos_token="</s>",
        pad_token="<pad>",
    )


@pytest.fixture
def directory(tmp_path):
    module = T5(tiny.config("v1.1"))
    hub.save_pretrained(tmp_path / "model", module.config, tiny.init(module), tokenizer())
    return tmp_path / "model"


@pytest.fixture
def mesh():
    return sharding.make_mesh(2, 2, 2)


def test_a_pretrained_student_has_the_saved_parameters(directory, mesh):
    student = load_student(str(directory), scan_layers=False)
    params = jax.device_get(student.load(mesh))
    saved = layout.unroll(tiny.init(T5(tiny.config("v1.1"))))
    jax.tree.map(np.testing.assert_array_equal, params, saved)
    np.testing.assert_array_equal(student.embeddings(params), params["shared"]["embedding"])


def test_the_tokenizer_says_what_ends_and_what_pads(directory):
    student = load_student(str(directory))
    assert (student.config.eos_token_id, student.config.pad_token_id) == (1, 2)
    assert student.decoder_start("{question}") == 0  # As it was trained.
    assert load_student(str(directory), init="random").decoder_start("{question}") == 2


def test_random_parameters_are_born_sharded_and_the_same_on_every_mesh(tmp_path, directory, mesh):
    path = tmp_path / "architecture.json"
    path.write_text((directory / "config.json").read_text())
    student = load_student(str(path), init="random", tokenizer=str(directory), seed=3)
    params = student.load(mesh)
    kernel = params["decoder"]["layers"]["self_attention"]["q"]["kernel"]
    assert kernel.shape == (2, 32, 4, 12)
    assert {s.data.shape for s in kernel.addressable_shards} == {(2, 16, 2, 12)}
    alone = student.load(sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, alone)
    assert jax.tree.map(lambda x: x.sharding, params) == jax.tree.map(
        lambda x: x.sharding, student.abstract(mesh)
    )
    # The scales that T5 starts with: no 1 / sqrt(d_kv) in its attention, so it is in q.
    assert np.std(kernel) == pytest.approx((32 * 12) ** -0.5, rel=0.1)
    assert np.std(params["shared"]["embedding"]) == pytest.approx(1.0, rel=0.1)


def test_with_lora_the_adapters_alone_are_trained(directory, mesh):
    student = load_student(str(directory), lora=LoRAConfig(rank=2, targets=("q", "wo")))
    params = student.load(mesh)
    flat = layout.flatten(params)
    trained, frozen = map(layout.flatten, student.split(params))
    assert set(trained) == {path for path in flat if layout.is_adapter(path)}
    assert set(frozen) == set(flat) - set(trained)
    base = load_student(str(directory))
    plain = layout.flatten(base.load(mesh))
    for path, value in plain.items():
        np.testing.assert_array_equal(flat[path], value, err_msg=path)
    assert np.abs(flat["encoder/layers/mlp/wo/lora_a"]).max() > 0
    assert not np.any(flat["encoder/layers/mlp/wo/lora_b"])
    assert base.split(plain) == (plain, {})


def test_an_int8_base_is_near_and_small(directory, mesh):
    plain = load_student(str(directory))
    lora = LoRAConfig(rank=2, targets=("all-linear",), base_dtype="int8")
    student = load_student(str(directory), lora=lora)
    assert student.module.lora is not None and "wo" in student.module.lora.targets
    params, flat = student.load(mesh), layout.flatten(plain.load(mesh))
    merged = layout.flatten(layout.merge(params, student.module.lora))
    assert merged.keys() == flat.keys()
    for path, value in flat.items():
        kernel = layout.flatten(params)[path]
        # Half a step of 1 / 127 of an output's largest weight; bfloat16 has 8 bits.
        bound = np.abs(value).max() * (0.51 / 127 if kernel.dtype == jnp.int8 else 2**-8)
        np.testing.assert_allclose(merged[path], value, atol=bound, err_msg=path)
    kernels = [p for p, leaf in layout.flatten(params).items() if leaf.dtype == jnp.int8]
    assert len(kernels) == sum(p.endswith("/kernel") and "lm_head" not in p for p in flat)


def test_unknown_projections_are_refused(directory):
    with pytest.raises(UserError, match=r"no projection 'up'\. Expected some of q, k, v"):
        load_student(str(directory), lora=LoRAConfig(rank=2, targets=("q", "up")))


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(directory, tmp_path):
    large = tmp_path / "large"
    tokenizer(words=200).save_pretrained(large)
    with pytest.raises(UserError, match=r"203 tokens.*96 embeddings.*vocab_size"):
        load_student(str(directory), tokenizer=str(large))


def test_t5s_own_vocabulary_has_spare_rows(shared_data):
    student = load_student(
        str(shared_data / "student_configs/flan_t5_base.json"),
        init="random",
        tokenizer=str(shared_data / "tokenizers/t5_spiece.model"),
    )
    assert (len(student.tokenizer), student.config.vocab_size) == (32100, 32128)


def test_missing_weights_are_noticed_before_any_work(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        load_student(str(directory))
    assert load_student(str(directory), init="random").random


def test_what_is_nowhere_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no such directory"):
        load_student(str(tmp_path / "nothing"))


def test_the_compute_type_leaves_parameters_in_float32(directory, mesh):
    student = load_student(str(directory), dtype="bfloat16")
    params = student.load(mesh)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    ids = np.ones((8, 4), np.int32)
    hidden: Any = student.module.apply({"params": params}, ids, ids > 0, ids)
    assert hidden.dtype == jnp.bfloat16
    assert json.loads((directory / "config.json").read_text())["dtype"] == "float32"


def test_flash_attention_without_a_gpu_is_refused(directory):
    with pytest.raises(
        UserError, match=r"student\.attention='cudnn'.*on cpu.*Set auto, xla or blocks"
    ):
        load_student(str(directory), attention="cudnn", dtype="bfloat16")
    assert load_student(str(directory), dtype="bfloat16").module.attention == "blocks"
    assert load_student(str(directory), attention="xla").module.attention == "xla"


def test_of_stacked_layers_one_at_a_time_is_on_the_host(tmp_path):
    """NumPy reports what it allocates; arrays of JAX are not among it."""
    model = tiny.torch_t5(tmp_path, "v1.1", num_layers=12, d_ff=4096)
    del model
    config = hub.load_config(str(tmp_path))
    assert isinstance(config, T5Config)
    abstract = tiny.abstract(T5(config), tiny.one_device())

    def peak():
        tracemalloc.start()
        hub.load_params(str(tmp_path), abstract, config)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    largest = 4096 * 32 * 4
    # Imports and other threads allocate, too; they do not every time.
    assert min(peak() for _ in range(3)) < 4 * largest
    assert sum(leaf.size * 4 for leaf in jax.tree.leaves(abstract)) > 12 * largest
