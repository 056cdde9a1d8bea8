"""Students as they are found in the wild, their exports, and the machines they are trained on."""

import contextlib
import dataclasses
import datetime
import io
import json
import pathlib
import shutil
import types
from typing import Any

import gguf
import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import tokenizers
import torch
import transformers

from configs import quickstart
from kpod_jax import pipeline
from kpod_jax.data import tokens
from kpod_jax.data.records import Record
from kpod_jax.evaluation.generation import Generator
from kpod_jax.models import export as exports
from kpod_jax.models import hub
from kpod_jax.models.export import export
from kpod_jax.models.families import config_from_json
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.student import load_student
from kpod_jax.parallel import sharding
from kpod_jax.report import exported, model_card
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.workdir import Workdir
from tests.data import gguf_files
from tests.models import test_gguf, test_llama, tiny

SIZES = test_llama.SIZES | {"num_hidden_layers": 3}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SLIDING, FULL = "sliding_attention", "full_attention"


def architecture(model_type: Any, **changes: Any) -> Any:
    """The architecture of a config.json; None removes a key, "null" is null."""
    value = {**SIZES, "model_type": model_type} | changes
    given = {k: None if v == "null" else v for k, v in value.items() if v is not None}
    return config_from_json(given)


@pytest.mark.parametrize(
    ("model_type", "changes", "expected"),
    [
        ("llama", {"sliding_window": 4}, {"sliding_window": None}),
        ("mistral", {"sliding_window": 4}, {"sliding_window": 4}),
        ("mistral", {"sliding_window": "null"}, {"sliding_window": None}),
        ("mistral", {}, {"sliding_window": 4096}),
        ("qwen2", {"sliding_window": 4}, {"sliding_window": None}),
        (
            "qwen2",
            {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 0},
            {"sliding_window": 4},
        ),
        # Layers from 28 on slide, and there are 3.
        ("qwen2", {"sliding_window": 4, "use_sliding_window": True}, {"sliding_window": None}),
        (
            "qwen3",
            {"sliding_window": 4, "use_sliding_window": True, "layer_types": [FULL] * 3},
            {"sliding_window": None},
        ),
        (
            "qwen2",
            {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1},
            {"layer_types": (FULL, SLIDING, SLIDING)},
        ),
        ("smollm3", {}, {"tie_word_embeddings": True, "rope_theta": 2e6, "no_rope_layers": ()}),
        ("smollm3", {"no_rope_layer_interval": 2}, {"no_rope_layers": (1, 0, 1)}),
        ("gemma3_text", {"head_dim": None}, {"query_pre_attn_scalar": 256, "head_dim": 256}),
        (
            "gemma3_text",
            {"sliding_window_pattern": 2},
            {"layer_types": (SLIDING, FULL, SLIDING), "rope_theta": 1e6, "sliding_window": 4096},
        ),
        ("qwen3", {"head_dim": None}, {"head_dim": 128}),
        ("qwen3", {"head_dim": "null"}, {"head_dim": 8}),
        ("llama", {"head_dim": None}, {"head_dim": 8}),
        ("llama", {"num_key_value_heads": None}, {"num_key_value_heads": 4}),
        ("llama", {"pad_token_id": -1}, {"pad_token_id": 1}),
        ("llama", {"eos_token_id": [], "pad_token_id": 0}, {"eos_token_id": 2}),
        ("llama", {"eos_token_id": [5, 6]}, {"eos_token_id": 5}),
        ("llama", {"hidden_act": "swish", "rope_scaling": "null"}, {"rope_theta": 10000.0}),
        (
            "llama",
            {"rope_parameters": {"rope_theta": None, "rope_type": "default"}, "rope_theta": 7.0},
            {"rope_theta": 7.0},
        ),
        (
            "qwen2",
            {"rope_parameters": {FULL: {"rope_type": "default", "rope_theta": 7.0}}},
            {"rope_theta": 7.0},
        ),
    ],
)
def test_an_architecture_is_the_one_transformers_understands(model_type, changes, expected):
    config = architecture(model_type, **changes)
    assert {key: getattr(config, key) for key in expected} == expected
    assert config_from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("model_type", "changes", "said"),
    [
        (["llama"], {}, "is not supported. Expected one of t5, mt5, llama"),
        ("mixtral", {}, "model_type 'mixtral'"),
        ("llama", {"rope_scaling": "linear"}, "rope_scaling is 'linear'; expected an object"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "lacks factor"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": "2"}}, "factor is '2'"),
        ("llama", {"rope_scaling": {"type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ("llama", {"rope_theta": "1e4"}, "rope_theta is '1e4'"),
        (
            "qwen2",
            {"rope_parameters": {FULL: {"rope_theta": 7.0}, SLIDING: {"rope_theta": 8.0}}},
            "differs between types of layers",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": YARN},
            "rope_parameters and rope_scaling differ",
        ),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ("qwen3", {"layer_types": [SLIDING] * 3}, "there is no sliding window"),
        ("qwen3", {"layer_types": [FULL] * 2}, "layer_types has 2 values; expected 3"),
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers has 1 values; expected 3"),
        ("qwen3", {"layer_types": FULL}, "layer_types is 'full_attention'"),
        ("mistral", {"sliding_window": 0}, "sliding_window is 0"),
        ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'"),
        ("llama", {"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
        ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps is inf"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads is 0"),
        ("llama", {"num_attention_heads": "4"}, "num_attention_heads is '4'"),
        (
            "llama",
            {"num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": None},
            "does not divide hidden_size",
        ),
        ("t5", {"dropout_rate": "0.1"}, "dropout_rate is '0.1'"),
        ("t5", {"tie_word_embeddings": "true"}, "tie_word_embeddings is 'true'"),
    ],
)
def test_another_architecture_is_one_line(model_type, changes, said):
    with pytest.raises(UserError, match=said) as error:
        architecture(model_type, **changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "rope",
    [
        YARN,
        YARN | {"beta_fast": 4.0, "beta_slow": 2.0, "attention_factor": 1.3},
        YARN | {"mscale": 0.7, "mscale_all_dim": 0.3, "truncate": False},
    ],
)
def test_yarn_is_that_of_transformers(tmp_path, monkeypatch, rope):
    kind = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 300.0} | rope}
    monkeypatch.setitem(test_llama.KINDS, "yarn", ("Qwen2", kind))
    model = test_llama.torch_model(tmp_path, "yarn")
    module, params = test_llama.load(tmp_path)
    arrays = test_llama.batch()
    expected = test_llama.torch_logits(model, arrays)
    np.testing.assert_allclose(tiny.logits(module, params, arrays), expected, atol=1e-4)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """A LLaMA that transformers wrote."""
    path = tmp_path_factory.mktemp("saved") / "model"
    test_llama.torch_model(path, "llama")
    return path


@pytest.fixture
def checkpoint(saved, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(saved, tmp_path / "model"))


def edit_json(path: pathlib.Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(path: pathlib.Path, change: Any) -> None:
    weights = safetensors.torch.load_file(path / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, path / "model.safetensors")


def shard(path: pathlib.Path) -> None:
    weights = safetensors.torch.load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names = sorted(weights)
    files = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    for i, file in enumerate(files):
        safetensors.torch.save_file({n: weights[n] for n in names[i::2]}, path / file)
    index = {"weight_map": {name: files[i % 2] for i, name in enumerate(names)}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def quantize(path: pathlib.Path, name: str, dtype: torch.dtype) -> None:
    edit_weights(path, lambda weights: weights.update({name: weights[name].to(dtype)}))


DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (
            lambda p: edit_json(p / "config.json", quantization_config={"quant_method": "fp8"}),
            "quantization_config, method 'fp8'.*GGUF file",
        ),
        (
            lambda p: edit_json(p / "config.json", compression_config={"format": "pack"}),
            "compression_config",
        ),
        (lambda p: quantize(p, DOWN, torch.float8_e4m3fn), "has dtype F8_E4M3.*unquantized"),
        (lambda p: quantize(p, DOWN, torch.int8), "has dtype I8"),
        (lambda p: edit_weights(p, lambda w: w.pop(DOWN)), f"lacks the weight {DOWN}"),
        (lambda p: edit_weights(p, lambda w: w.pop("lm_head.weight")), "lacks the weight lm_head"),
        (
            lambda p: edit_weights(p, lambda w: w.update({"score.weight": w[DOWN].clone()})),
            "has the weight score.weight",
        ),
        (
            lambda p: edit_json(p / "config.json", tie_word_embeddings=True),
            "lm_head.weight differs from model.embed_tokens.weight",
        ),
        (lambda p: (shard(p), (p / "model-00002-of-00002.safetensors").unlink()), "1 of the 2"),
        (
            lambda p: (shard(p), (p / "model.safetensors.index.json").unlink()),
            "whose model.safetensors.index.json is missing",
        ),
        (
            lambda p: (shard(p), (p / "model.safetensors.index.json").write_text("[]")),
            "holds \\[\\]; expected an object",
        ),
        (
            lambda p: (
                shard(p),
                shutil.copy(
                    p / "model-00001-of-00002.safetensors", p / "model-00002-of-00002.safetensors"
                ),
            ),
            "which model.safetensors.index.json expects there",
        ),
        (lambda p: (p / "model.safetensors").rename(p / "tiny.gguf"), "is a GGUF file; give"),
        (
            lambda p: (
                (p / "config.json").unlink(),
                (p / "adapter_config.json").write_text("{}"),
            ),
            "is a PEFT adapter.*merge_and_unload",
        ),
    ],
)
def test_other_weights_are_one_line(checkpoint, break_it, said):
    break_it(checkpoint)
    with pytest.raises(UserError, match=said) as error:
        test_llama.load(checkpoint)
    assert "\n" not in str(error.value)


def test_a_sharded_model_is_whole(checkpoint, saved):
    shard(checkpoint)
    arrays = test_llama.batch()
    found = tiny.logits(*test_llama.load(checkpoint), arrays)
    np.testing.assert_array_equal(found, tiny.logits(*test_llama.load(saved), arrays))


@pytest.fixture(scope="module")
def gguf_model(tmp_path_factory) -> tuple[pathlib.Path, Any]:
    path, model = tmp_path_factory.mktemp("gguf") / "tiny.gguf", test_gguf.torch_model("llama")
    test_gguf.write(path, model)
    return path, model


def rewrite(source: pathlib.Path, target: pathlib.Path, fields: dict[str, Any], names: Any = None):
    """Copies a GGUF file with other fields, and only some tensors."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    values = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    for key, value in (values | fields).items():
        if key == "general.architecture" or value is None:
            continue
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    for tensor in reader.tensors:
        if names is None or tensor.name in names:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    gguf_files.finish(writer)


def split(source: pathlib.Path, directory: pathlib.Path) -> list[pathlib.Path]:
    names = [tensor.name for tensor in gguf.GGUFReader(source).tensors]
    paths = [directory / f"tiny-0000{i + 1}-of-00002.gguf" for i in range(2)]
    for i, path in enumerate(paths):
        fields = {"split.no": i, "split.count": 2, "split.tensors.count": len(names)}
        rewrite(source, path, fields, names[i::2])
    return paths


def test_the_parts_of_a_split_gguf_are_one_model(gguf_model, tmp_path):
    path, _ = gguf_model
    parts, arrays = split(path, tmp_path), test_llama.batch()
    expected = tiny.logits(*test_llama.load(path), arrays)
    for part in parts:
        found = tiny.logits(*test_llama.load(part), arrays)
        np.testing.assert_array_equal(found, expected)
    parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(UserError, match="is a part of a model: it holds"):
        hub.load_config(str(tmp_path / "renamed.gguf"))
    with pytest.raises(UserError, match=r"00001-of-00002\.gguf: .* is one of 2 parts"):
        hub.load_config(str(parts[1]))


def test_yarn_in_a_gguf_is_that_of_transformers(gguf_model, tmp_path):
    path, _ = gguf_model
    rope: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    rope["original_max_position_embeddings"] = 16
    sizes: dict[str, Any] = test_gguf.SIZES | {"rope_parameters": rope}
    config = transformers.LlamaConfig(**sizes)
    fields = {"type": "yarn", "factor": 4.0, "original_context_length": 16}
    rewrite(path, tmp_path / "y.gguf", {f"llama.rope.scaling.{k}": v for k, v in fields.items()})
    found: Any = hub.load_config(str(tmp_path / "y.gguf"))
    expected: Any = config_from_json(config.to_dict())
    assert found.rope_scaling == expected.rope_scaling
    assert found.rope_scaling.attention_factor == pytest.approx(0.1 * np.log(4) + 1)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"llama.rope.scaling.factor": 2.0}, ("linear", 2.0, None)),
        ({"llama.rope.scale_linear": 2.0}, ("linear", 2.0, None)),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0},
            ("default", 1.0, None),
        ),
        ({"llama.attention.sliding_window": 8}, ("default", 1.0, 8)),
        ({"llama.expert_count": 8}, "has expert_count 8"),
        ({"llama.rope.dimension_count": 8}, "has rope.dimension_count 8"),
        ({"llama.attention.value_length": 8}, "has attention.value_length 8"),
        ({"llama.attention.head_count_kv": [2, 1]}, "has layers of different attention.head_count"),
        ({"llama.rope.scaling.type": "yarn"}, "lacks the field llama.rope.scaling.factor"),
        ({"llama.rope.scaling.type": "longrope"}, "uses RoPE scaling 'longrope'"),
        ({"general.type": "adapter"}, "of type 'adapter'; expected a model"),
        ({"llama.final_logit_softcapping": 30.0}, "has final_logit_softcapping 30"),
    ],
)
def test_the_metadata_of_a_gguf_counts(gguf_model, tmp_path, fields, expected):
    rewrite(gguf_model[0], tmp_path / "tiny.gguf", fields)
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            hub.load_config(str(tmp_path / "tiny.gguf"))
        return
    config: Any = hub.load_config(str(tmp_path / "tiny.gguf"))
    scaling = config.rope_scaling
    assert (scaling.rope_type, scaling.factor, config.sliding_window) == expected
    assert config_from_json(config.to_json()) == config


# Exports.

BOS, EOS = "<|begin_of_text|>", "<|eot_id|>"
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% if strftime_now is defined %}Today Date: {{ strftime_now('%d %b %Y') }}\n"
    "{% endif %}{% for m in messages %}[{{ m.role }}]\n{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
DAY = datetime.date(2024, 7, 26)
# The kind of student, its chat template, and what the tokenizer adds to a text.
FORMS = {
    "chat": ("llama", LLAMA3_TEMPLATE, f"{BOS} $A"),
    "bos": ("llama", None, f"{BOS} $A"),
    "bos-eos": ("llama", None, f"{BOS} $A {EOS}"),
    "nothing": ("llama", None, ""),
    "t5": ("t5", None, f"$A {EOS}"),
    "t5-nothing": ("t5", None, ""),
}


def write_tokenizer(path: pathlib.Path, template: str | None, added: str) -> int:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", EOS, BOS],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(gguf_files.CORPUS, trainer)
    if added:
        special = [(name, i) for i, name in enumerate(["<pad>", EOS, BOS])]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=added, special_tokens=special
        )
    names = {"pad_token": "<pad>", "eos_token": EOS, "bos_token": BOS}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=template,
        additional_special_tokens=["<extra_id_0>"],
        **names,
    ).save_pretrained(path)
    return tokenizer.get_vocab_size() + 1


def write_student(path: pathlib.Path, form: str, **changes: Any) -> Any:
    """A random student in a directory of its own, and its parameters."""
    kind, template, added = FORMS[form]
    path.mkdir(parents=True)
    vocabulary = write_tokenizer(path, template, added)
    config = SIZES if kind == "llama" else tiny.SIZES | tiny.KINDS["v1.1"] | {"num_layers": 2}
    value = config | {"vocab_size": vocabulary, "model_type": kind, "_name_or_path": "/home/me/x"}
    (path / "config.json").write_text(json.dumps(value))
    options = {"chat": template is not None, "max_target_tokens": 16, "scan_layers": False}
    mesh = tiny.one_device()
    born = load_student(str(path), init="random", seed=2, **options)
    params = jax.tree.map(lambda leaf: 5 * leaf, born.load(mesh))
    hub.save_pretrained(path / "weights", born.config, params)
    shutil.copy(path / "weights/model.safetensors", path)
    shutil.rmtree(path / "weights")
    student = dataclasses.replace(load_student(str(path), **options | changes), date=DAY)
    return student, student.load(mesh)


def run_config(student: Any, **changes: Any) -> Any:
    config = quickstart.get_config("scotd")
    config.student = student.settings
    config.update(changes)
    return config


def code_of(root: pathlib.Path) -> str:
    text = (root / "export/README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    return code.replace("DIRECTORY", str(root / "export"))


def evaluated(student: Any, params: Any, question: str, limit: int) -> str:
    records = [Record("1", question, (), "")]
    options = {"prompt": student.prompt, "decoder_only": student.decoder_only}
    ids = tokens.tokenize_questions(records, student.tokenizer, **options)
    start = student.decoder_start(student.prompt)
    generator = Generator(student, tiny.one_device(), start, batch_size=1, max_new_tokens=limit)
    written = generator(params, ids)[0, 0]
    return student.tokenizer.decode(written, skip_special_tokens=True)


@pytest.mark.parametrize("form", FORMS)
def test_the_code_of_a_card_writes_what_is_evaluated(tmp_path, form):
    student, params = write_student(tmp_path / "base", form)
    config = run_config(student, eval={"max_new_tokens": 12})
    exported.write(config, student, params, 3, tmp_path)
    question = "How many pens has Tom?"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code_of(tmp_path).replace("QUESTION", question), {})
    expected = evaluated(student, params, question, 12)
    assert len(expected) > 3
    assert printed.getvalue() == f"{expected}\n"


def check_no_paths(directory: pathlib.Path, *paths: pathlib.Path) -> None:
    for file in directory.rglob("*"):
        if file.suffix in (".md", ".json"):
            for path in (*paths, "/home/me"):
                assert str(path) not in file.read_text(), file


def test_an_export_is_read_by_transformers_4(tmp_path):
    student, params = write_student(tmp_path / "base", "chat")
    exported.write(run_config(student), student, params, 3, tmp_path)
    value = json.loads((tmp_path / "export/tokenizer_config.json").read_text())
    assert value["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert value["additional_special_tokens"] == ["<extra_id_0>"]
    assert value["model_input_names"] == ["input_ids", "attention_mask"]
    assert not {"extra_special_tokens", "backend", "is_local", "local_files_only"} & value.keys()
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    text = "<extra_id_0>Tom has 3 pens."
    assert again(text).input_ids == student.tokenizer(text).input_ids
    check_no_paths(tmp_path / "export", tmp_path)


LORA = {"lora": LoRAConfig(rank=2, targets=("q", "v"))}


def test_an_adapter_comes_with_a_copy_of_a_local_base(tmp_path):
    student, params = write_student(tmp_path / "base", "bos", **LORA)
    flat = jax.tree.map(lambda leaf: leaf + 0.1, params)  # Adapters start at zero.
    trained, _ = student.split(flat)
    _, frozen = student.split(params)
    params = jax.tree.map(jax.numpy.asarray, hub.layout.combine(trained, frozen))
    config = run_config(student, export={"lora": "adapter"}, eval={"max_new_tokens": 8})
    exported.write(config, student, params, 3, tmp_path)
    value = json.loads((tmp_path / "export/adapter_config.json").read_text())
    assert value["base_model_name_or_path"] is None
    check_no_paths(tmp_path / "export", tmp_path)
    expected = evaluated(student, params, "How many?", 8)
    shutil.rmtree(tmp_path / "base")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code_of(tmp_path).replace("QUESTION", "How many?"), {})
    assert printed.getvalue() == f"{expected}\n"


def test_no_adapter_is_written_for_matrices_that_are_fused_in_files(tmp_path):
    student, params = write_student(tmp_path / "base", "bos", **LORA)
    config = dataclasses.replace(student.config, model_type="phi3")
    with pytest.raises(UserError, match=r"files of phi3 hold q, k and v in one matrix"):
        exports.check_base(dataclasses.replace(student, config=config))
    hub.save_pretrained(tmp_path / "out", config, params, lora=student.module.lora)
    names = safetensors.numpy.load_file(tmp_path / "out/model.safetensors").keys()
    assert sum("qkv_proj" in name for name in names) == config.num_hidden_layers


@pytest.mark.parametrize(
    ("model", "init", "base", "said"),
    [
        ("meta-llama/Llama-3.2-1B", "pretrained", "meta-llama/Llama-3.2-1B", None),
        ("gpt2", "pretrained", "gpt2", None),
        ("HuggingFaceTB/SmolLM2-135M", "random", None, "initialized randomly"),
        ("{folder}/tiny.gguf", "pretrained", None, r"adapts no \.gguf file"),
    ],
)
def test_the_base_of_an_adapter_is_one_that_others_have(tmp_path, model, init, base, said):
    student, params = write_student(tmp_path / "base", "bos", **LORA)
    (tmp_path / "tiny.gguf").write_text("")
    settings = student.settings.copy_and_resolve_references()
    settings.model, settings.init = model.format(folder=tmp_path), init
    object.__setattr__(student, "settings", settings)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").write_text("")
    if said:
        with pytest.raises(UserError, match=f"{said}.*export.lora=merged"):
            export(student, params, tmp_path / "out", lora="adapter")
        assert (tmp_path / "out/old").exists()
        return
    assert export(student, params, tmp_path / "out", lora="adapter")
    value = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert value["base_model_name_or_path"] == base
    assert not (tmp_path / "out/base").exists()


RESULTS = {
    "split": "test",
    "accuracy": 0.25,
    "correct": 10,
    "total": 40,
    "interval": [0.14, 0.4],
    "checkpoint_step": 7,
}


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [
        ({}, 7, {"pipeline_tag": "text-generation", "accuracy": 0.25}),
        ({}, 8, {"accuracy": None}),
        ({"student.model": "google/flan-t5-base"}, 7, {"base_model": "google/flan-t5-base"}),
        ({"student.model": "t5-small", "student.init": "random"}, 7, {"base_model": None}),
        ({"student.model": "/home/me/qwen"}, 7, {"base_model": None}),
        ({"student.model": "runs\\me\\qwen"}, 7, {"base_model": None}),
        ({"student.model": "models/x.gguf"}, 7, {"base_model": None, "license": None}),
        ({"student.model": "{licensed}"}, 7, {"base_model": None, "license": "apache-2.0"}),
        ({"data.name": "gsm8k", "data.path": "/home/me/gsm8k"}, 7, {"datasets": ["openai/gsm8k"]}),
        ({"data.name": "arithmetic"}, 7, {"datasets": None}),
        ({"data.name": "jsonl", "data.path": "/home/me/x.jsonl"}, 7, {"datasets": None}),
        (
            {"data.name": "huggingface", "data.path": "me/sums:easy", "data.rationales": "me/cot"},
            7,
            {"datasets": ["me/sums", "me/cot"]},
        ),
        ({"weighting.weights": "/home/me/runs/w.npz"}, 7, {}),
        ({"weighting.answerer": "~/secret/answerer", "schedule.vectors": "me/glove.txt"}, 7, {}),
    ],
)
def test_a_card_has_what_is_known_and_no_paths(tmp_path, changes, step, expected):
    (tmp_path / "licensed").mkdir()
    (tmp_path / "licensed/README.md").write_text("---\nlicense: apache-2.0\n---\n")
    config = quickstart.get_config()
    for key, value in changes.items():
        config.update_from_flattened_dict({key: value.format(licensed=tmp_path / "licensed")})
    options: dict[str, Any] = {"decoder_only": True, "is_adapter": False, "results": RESULTS}
    text = model_card.model_card(config, prompt="Q: {question}", step=step, **options)
    data = huggingface_hub.ModelCard(text).data
    found = data.to_dict()
    results = found.get("model-index")
    accuracy = results[0]["results"][0]["metrics"][0]["value"] if results else None
    found["accuracy"] = accuracy
    assert {key: found.get(key) for key in expected} == expected
    for part in ("/home", "secret/", str(tmp_path), "me\\"):
        assert part not in text


# The date of a chat template.


def test_a_run_keeps_the_date_of_its_prompt(tmp_path, monkeypatch):
    student, _ = write_student(tmp_path / "base", "chat")
    config = run_config(student)
    root, sibling = tmp_path / "run", tmp_path / "sibling"

    class Tomorrow(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:
            return cls(2030, 1, 2)

    first = pipeline.read_student(config, root)
    assert f"Today Date: {datetime.date.today():%d %b %Y}\n" in first.prompt
    written = json.loads((root / "prompt.json").read_text())
    assert written == {
        "date": str(datetime.date.today()),
        "prompt": first.prompt,
        "chat": True,
        "system_prompt": "",
        "chat_template_kwargs": {},
    }
    monkeypatch.setattr(datetime, "date", Tomorrow)
    assert pipeline.read_student(config, root).prompt == first.prompt
    # A sibling may take over the tokens of the run.
    assert pipeline.read_student(config, sibling, [root]).prompt == first.prompt
    assert "02 Jan 2030" in pipeline.read_student(config, tmp_path / "new").prompt

    # The key takes precedence, and prompt.json follows it.
    config.student.date = "2024-07-26"
    assert "Today Date: 26 Jul 2024\n" in pipeline.read_student(config, root).prompt
    assert json.loads((root / "prompt.json").read_text())["date"] == "2024-07-26"


# A student that was moved.


def test_a_student_is_its_contents(tmp_path):
    model, workdir = tmp_path / "model", Workdir(tmp_path / "run")
    model.mkdir()
    (model / "config.json").write_text("{}")

    def fingerprint(path: pathlib.Path, **more: Any) -> dict[str, Any]:
        settings = {"student.model": str(path), "seed": 0} | more
        return workdir.fingerprint(settings, [], [str(path), "google/t5", ""])

    first = fingerprint(model)
    assert f"file {model}" in first  # As earlier versions wrote it.
    workdir.mark("distill", first)
    moved = model.rename(tmp_path / "elsewhere")
    assert workdir.done("distill", fingerprint(moved), [])
    assert workdir.difference("distill", fingerprint(moved)) == ""
    # The evaluation's fingerprint contains the training's.
    workdir.mark("eval", fingerprint(moved, training=first))
    copied = pathlib.Path(shutil.copytree(moved, tmp_path / "copy"))
    assert workdir.done("eval", fingerprint(copied, training=fingerprint(moved)), [])
    (moved / "config.json").write_text("{ }")
    assert not workdir.done("distill", fingerprint(moved), [])
    assert workdir.difference("distill", fingerprint(moved)) == (
        "the contents of student.model changed"
    )
    assert not workdir.done("distill", fingerprint(copied, seed=1), [])
    assert not workdir.done("distill", {"student.model": "google/t5", "seed": 0}, [])


# Several slices.


class Chip(types.SimpleNamespace):
    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return id(self)


def devices(platform: str, slices: int, count: int = 8) -> list[Any]:
    """Devices of slices that are rows of chips, in no order."""
    size = count // slices
    return [
        Chip(
            id=i,
            platform=platform,
            device_kind="x",
            slice_index=i // size,
            process_index=i,
            coords=(i % size, 0, 0),
            core_on_chip=0,
        )
        for i in reversed(range(count))
    ]


@pytest.mark.parametrize(
    ("sizes", "slices", "shape"),
    [
        ((-1, 1, 1), 2, (8, 1, 1)),
        ((2, -1, 1), 2, (2, 4, 1)),
        ((2, 2, 2), 2, (2, 2, 2)),
        ((4, 1, 2), 4, (4, 1, 2)),
        ((4, -1, 1), 2, (4, 2, 1)),
    ],
)
def test_data_goes_across_slices(sizes, slices, shape):
    mesh = sharding.make_mesh(*sizes, devices=devices("tpu", slices))
    assert mesh.devices.shape == shape
    index = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    rows = np.arange(shape[0]) * slices // shape[0]
    np.testing.assert_array_equal(index, np.broadcast_to(rows[:, None, None], shape))
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize("sizes", [(1, -1, 1), (1, 1, -1), (3, 1, 1), (1, 2, 4)])
def test_only_data_goes_across_slices(sizes):
    with pytest.raises(UserError, match=r"slices|product"):
        sharding.make_mesh(*sizes, devices=devices("tpu", 2))
