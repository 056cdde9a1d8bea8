"""Hostile and damaged model files: small models, and what was changed in them.

A case changes a directory with a valid model, tokenizer included; `WANTED` says how loading ends.
"""

import json
import math
import os
import pathlib
import pickle
import shutil
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.numpy
from sentencepiece import sentencepiece_model_pb2

from tests.conftest import LLAMA_JSON, ROOT
from tests.data.gguf_files import sentencepiece_model

Case = Callable[[pathlib.Path], Any]
ASSETS = ROOT / "kpod_jax/assets/tiny_t5"
T5_JSON = json.loads((ROOT / "tests/tiny_t5.json").read_text())
EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
LOADS = ""  # The case is harmless.
RANDOM = {"init": "random"}


def weights() -> dict[str, np.ndarray]:
    """The weights of a LLaMA of `LLAMA_JSON`."""
    c, zeros = LLAMA_JSON, lambda *shape: np.zeros(shape, np.float32)
    width, inner, kv = c["hidden_size"], c["intermediate_size"], 16
    result = {EMBEDDING: zeros(c["vocab_size"], width), NORM: zeros(width)}
    for i in range(c["num_hidden_layers"]):
        sizes = {"q": (width, width), "k": (kv, width), "v": (kv, width), "o": (width, width)}
        layer = {f"self_attn.{k}_proj": v for k, v in sizes.items()}
        layer |= {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width)}
        layer |= {"mlp.down_proj": (width, inner)}
        layer |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
        result |= {f"model.layers.{i}.{k}.weight": zeros(*v) for k, v in layer.items()}
    return result


def write_llama(path: pathlib.Path) -> None:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(LLAMA_JSON))
    safetensors.numpy.save_file(weights(), path / "model.safetensors")
    for file in ASSETS.glob("tokenizer*.json"):
        shutil.copy(file, path)


def edit(name: str, *removed: str, **values: Any) -> Case:
    """Changes keys of a JSON file."""

    def change(path: pathlib.Path) -> None:
        value = json.loads((path / name).read_text()) | values
        (path / name).write_text(json.dumps({k: v for k, v in value.items() if k not in removed}))

    return change


def put(name: str, content: Any) -> Case:
    """Replaces a file; anything but text and bytes is written as JSON."""

    def change(path: pathlib.Path) -> None:
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return change


def config(*removed: str, **values: Any) -> Case:
    return edit("config.json", *removed, **values)


def t5(**values: Any) -> Case:
    return put("config.json", T5_JSON | values)


NESTED = '{"a":' * 100_000 + "1" + "}" * 100_000

# What is changed in a config.json, with randomly initialized and with pretrained weights.
CONFIGS: dict[str, tuple[Case, str]] = {
    "not-json": (put("config.json", "{"), "not valid JSON"),
    "empty": (put("config.json", ""), "not valid JSON"),
    "binary": (put("config.json", b"\x80\x04\x95\xff\x00"), "not valid JSON"),
    "utf-16": (put("config.json", "{}".encode("utf-16")), "not valid JSON"),
    "array": (put("config.json", [1]), "an object"),
    "null": (put("config.json", None), "an object"),
    "nested": (put("config.json", NESTED), "nested too deeply"),
    "digits": (put("config.json", '{"vocab_size": %s}' % ("9" * 5000)), "not valid JSON"),
    "large": (lambda p: os.truncate(p / "config.json", 1 << 34), "bytes"),
    "directory": (lambda p: ((p / "config.json").unlink(), (p / "config.json").mkdir()), "config"),
    "no-model-type": (config("model_type"), "model_type None"),
    "list-model-type": (config(model_type=["llama"]), "model_type"),
    "dict-model-type": (config(model_type={"a": 1}), "model_type"),
    "long-model-type": (config(model_type="x" * 10**6), "model_type"),
    "layers": (config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "sliding-layers": (
        config(
            model_type="qwen2",
            num_hidden_layers=10**9,
            use_sliding_window=True,
            sliding_window=4,
        ),
        "num_hidden_layers is 1000000000",
    ),
    "vocab": (config(vocab_size=10**12), "vocab_size is 1000000000000"),
    "vocab-text": (config(vocab_size="1024"), "vocab_size is '1024'"),
    "vocab-float": (config(vocab_size=1024.0), "vocab_size is 1024.0"),
    "vocab-true": (config(vocab_size=True), "vocab_size is True"),
    "negative": (config(intermediate_size=-64), "intermediate_size is -64"),
    "zero-hidden": (config(hidden_size=0), "hidden_size is 0"),
    "zero-layers": (config(num_hidden_layers=0), "num_hidden_layers is 0"),
    "zero-kv": (config(num_key_value_heads=0), "num_key_value_heads is 0"),
    "heads-do-not-divide": (config(num_attention_heads=3, num_key_value_heads=3), "divide"),
    "kv-do-not-divide": (config(num_key_value_heads=3), "num_key_value_heads=3"),
    "odd-head": (config(head_dim=7), "head_dim=7"),
    "list-heads": (config(num_attention_heads=[4, 4]), "num_attention_heads is [4, 4]"),
    "product": (
        config(hidden_size=1 << 20, intermediate_size=1 << 22, num_hidden_layers=1000, head_dim=64),
        "parameters",
    ),
    "overflow": (config(hidden_size=10**30), "hidden_size is 1000000"),
    "heads-overflow": (
        config(num_attention_heads=1 << 23, num_key_value_heads=1, head_dim=1 << 23),
        "parameters",
    ),
    "act-list": (config(hidden_act=["silu"]), "hidden_act is ['silu']"),
    "act-dict": (config(hidden_act={"a": 1}), "hidden_act is"),
    "theta-huge": (config(rope_theta=10**400), "rope_theta is 1000"),
    "theta-nan": (put("config.json", json.dumps(LLAMA_JSON | {"rope_theta": math.nan})), "nan"),
    "eps-negative": (config(rms_norm_eps=-1e-6), "rms_norm_eps is -1e-06"),
    "eps-list": (config(rms_norm_eps=[1e-6]), "rms_norm_eps is [1e-06]"),
    "eps-huge": (config(rms_norm_eps=1e300), "rms_norm_eps is 1e+300"),
    "tie-number": (config(tie_word_embeddings=1), "tie_word_embeddings is 1"),
    "eos-nested": (config(eos_token_id=[[2]]), "eos_token_id is [2]"),
    "eos-text": (config(eos_token_id="</s>"), "eos_token_id is '</s>'"),
    "eos-negative": (config(eos_token_id=-5), "eos_token_id is -5"),
    "eos-huge": (config(eos_token_id=10**20), "eos_token_id is 1"),
    "rope-list": (config(rope_scaling=[1]), "rope_scaling is [1]"),
    "rope-type-list": (
        config(rope_scaling={"rope_type": ["linear"], "factor": 2.0}),
        "rope_type ['linear']",
    ),
    "rope-type-dict": (
        config(rope_scaling={"rope_type": {}, "factor": 2.0}),
        "rope_scaling differs",
    ),
    "rope-factor-zero": (config(rope_scaling={"type": "linear", "factor": 0}), "factor is 0"),
    "rope-factor-huge": (
        config(rope_scaling={"type": "linear", "factor": 10**400}),
        "factor is 1",
    ),
    "rope-original-list": (
        config(
            rope_scaling={"type": "yarn", "factor": 2.0, "original_max_position_embeddings": [1]}
        ),
        "original_max_position_embeddings is [1]",
    ),
    "yarn-theta-one": (
        config(
            rope_theta=1.0,
            rope_scaling={"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8},
        ),
        "rope_theta",
    ),
    "yarn-mscale-text": (
        config(rope_scaling={"type": "yarn", "factor": 2.0, "mscale": "1", "mscale_all_dim": "1"}),
        "mscale",
    ),
    "rope-parameters-nested": (
        config(rope_parameters={"full_attention": {"full_attention": {"factor": 1}}}),
        LOADS,
    ),
    "window-text": (config(model_type="mistral", sliding_window="4"), "sliding_window is '4'"),
    "layer-types-nested": (config(model_type="qwen3", layer_types=[[]]), "layer_types is"),
    "positions-text": (config(max_position_embeddings="2048"), "max_position_embeddings is"),
    "positions-list-yarn": (
        config(max_position_embeddings=[8], rope_scaling={"type": "yarn"}),
        "lacks factor",
    ),
    "quantization-list": (config(quantization_config=["fp8"]), "quantization_config is ["),
    "auto-map": (config(auto_map={"AutoModel": "evil.Model"}), LOADS),
    "t5-proj-list": (t5(feed_forward_proj=["relu"]), "feed_forward_proj is ['relu']"),
    "t5-proj-dict": (t5(feed_forward_proj={}), "feed_forward_proj is {}"),
    "t5-proj-number": (t5(feed_forward_proj=7), "feed_forward_proj is 7"),
    "t5-layers": (t5(num_layers=10**9), "num_layers is 1000000000"),
    "t5-decoder-layers": (t5(num_decoder_layers=10**9), "num_decoder_layers is"),
    "t5-vocab": (t5(vocab_size=10**12), "vocab_size is"),
    "t5-zero-heads": (t5(num_heads=0), "num_heads is 0"),
    "t5-negative": (t5(d_kv=-16), "d_kv is -16"),
    "t5-dropout": (t5(dropout_rate=1.5), "dropout_rate is 1.5"),
    "t5-dropout-nan": (put("config.json", json.dumps(T5_JSON | {"dropout_rate": math.nan})), "nan"),
    "t5-one-bucket": (t5(relative_attention_num_buckets=1), "relative_attention_num_buckets"),
    "t5-distance": (t5(relative_attention_max_distance=1), "relative_attention_max_distance"),
    "t5-buckets": (t5(relative_attention_num_buckets=10**10), "relative_attention_num_buckets"),
    "t5-scale-text": (t5(scale_decoder_outputs="false"), "scale_decoder_outputs is 'false'"),
    "t5-product": (t5(d_model=1 << 23, d_ff=1 << 23), "parameters"),
}


# Weights.


def change_weights(change: Callable[[dict[str, np.ndarray]], Any]) -> Case:
    def run(path: pathlib.Path) -> None:
        change(values := weights())
        safetensors.numpy.save_file(values, path / "model.safetensors")

    return run


def header(entries: Any, data: int = 64, length: int | None = None) -> Case:
    """Writes a safetensors file with any header."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()

    def run(path: pathlib.Path) -> None:
        size = struct.pack("<Q", len(text) if length is None else length)
        (path / "model.safetensors").write_bytes(size + text + b"\0" * data)

    return run


def entry(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {EMBEDDING: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def index(weight_map: Any, **other: Any) -> Case:
    """Replaces the weights by an index; a function gets the names of the weights."""

    def run(path: pathlib.Path) -> None:
        (path / "model.safetensors").rename(path / "a.safetensors")
        value = weight_map(list(weights())) if callable(weight_map) else weight_map
        text = value if isinstance(value, str) else json.dumps({"weight_map": value} | other)
        (path / "model.safetensors.index.json").write_text(text)

    return run


class Danger:
    """Unpickling creates a file."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("/tmp/kpod_jax_unpickled",)


def pickled(name: str) -> Case:
    def run(path: pathlib.Path) -> None:
        (path / "model.safetensors").unlink()
        (path / name).write_bytes(pickle.dumps(Danger()))

    return run


def link(path: pathlib.Path) -> None:
    (path / "model.safetensors").rename(path.parent / "elsewhere")
    (path / "model.safetensors").symlink_to(path.parent / "elsewhere")


def link_to(target: str) -> Case:
    def run(path: pathlib.Path) -> None:
        (path / "model.safetensors").unlink()
        (path / "model.safetensors").symlink_to(target)

    return run


def fifo(path: pathlib.Path) -> None:
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")


def named(name: str) -> Case:
    return change_weights(lambda w: w.update({name: np.zeros(2, np.float32)}))


DOUBLE = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},%s}' % (
    b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
)
TENSORS: dict[str, tuple[Case, str]] = {
    "empty": (put("model.safetensors", b""), "Cannot read"),
    "zeros": (put("model.safetensors", b"\0" * 64), "Cannot read"),
    "html": (put("model.safetensors", b"<!DOCTYPE html><html>" * 9), "Cannot read"),
    "lfs": (put("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
    "truncated": (lambda p: os.truncate(p / "model.safetensors", 9000), "Cannot read"),
    "extended": (
        lambda p: os.truncate(p / "model.safetensors", 1 << 20),
        "Cannot read",
    ),
    "header-2^63": (header({}, length=1 << 63), "Cannot read"),
    "header-2^33": (header({}, length=1 << 33), "Cannot read"),
    "header-beyond": (header({}, length=500), "Cannot read"),
    "header-not-json": (header(b"{{{{"), "Cannot read"),
    "header-array": (header([1]), "Cannot read"),
    "header-nested": (header(NESTED.encode()), "Cannot read"),
    "header-not-utf8": (header(b'{"\xff":1}'), "Cannot read"),
    "no-tensors": (header({}, 0), "lacks the weight"),
    "metadata-alone": (header({"__metadata__": {"format": "pt"}}, 0), "lacks the weight"),
    "metadata-number": (header({"__metadata__": {"format": 1}}, 0), "Cannot read"),
    "overlap": (
        header(
            entry([8], [0, 32]) | {"b": {"dtype": "F32", "shape": [8], "data_offsets": [16, 48]}}
        ),
        "Cannot read",
    ),
    "hole": (header(entry([8], [32, 64])), "Cannot read"),
    "reversed": (header(entry([8], [32, 0])), "Cannot read"),
    "beyond": (header(entry([1 << 40], [0, 1 << 42])), "Cannot read"),
    "product-overflows": (header(entry([1 << 40, 1 << 40], [0, 64])), "Cannot read"),
    "bytes-differ": (header(entry([4], [0, 64])), "Cannot read"),
    "negative-shape": (header(entry([-16], [0, 64])), "Cannot read"),
    "negative-offset": (header(entry([16], [-64, 0])), "Cannot read"),
    "shape-text": (header(entry("16", [0, 64])), "Cannot read"),
    "shape-float": (header(entry([16.5], [0, 64])), "Cannot read"),
    "dtype-unknown": (header(entry([16], [0, 64], "F31")), "Cannot read"),
    "dtype-number": (header(entry([16], [0, 64], 7)), "Cannot read"),
    "dtype-fp8": (header(entry([64], [0, 64], "F8_E5M2")), "has dtype F8_E5M2"),
    "dtype-bool": (header(entry([64], [0, 64], "BOOL")), "has dtype BOOL"),
    "dtype-complex": (header(entry([8], [0, 64], "C64")), "has dtype C64"),
    "duplicate": (header(DOUBLE, 8), "Cannot read"),
    "zero-dimension": (header(entry([0, 5], [0, 0]), 0), "lacks the weight"),
    "scalar": (change_weights(lambda w: w.update({NORM: np.ones((), np.float32)})), "has shape []"),
    "rank-5": (
        change_weights(lambda w: w.update({NORM: np.zeros((2, 2, 2, 2, 2), np.float32)})),
        "has shape [2, 2, 2, 2, 2]",
    ),
    "transposed": (change_weights(lambda w: w.update({DOWN: w[DOWN].T.copy()})), "has shape [64"),
    "missing": (change_weights(lambda w: w.pop(DOWN)), f"lacks the weight {DOWN}"),
    "not-a-number": (change_weights(lambda w: w[DOWN].__setitem__((3, 3), np.nan)), "finite"),
    "infinity": (change_weights(lambda w: w[NORM].__setitem__(3, np.inf)), "finite"),
    "half": (
        change_weights(lambda w: w.update({k: v.astype(np.float16) for k, v in w.items()})),
        LOADS,
    ),
    "half-infinity": (
        change_weights(lambda w: w.update({DOWN: np.full((32, 64), np.inf, np.float16)})),
        "finite",
    ),
    "name-newline": (named("a\nTraceback: b"), "has the weight"),
    "name-escape": (named("\x1b[31mred"), "has the weight"),
    "name-long": (named("x" * 100_000), "has the weight"),
    "wider-config": (config(hidden_size=1 << 15, head_dim=8), "hidden_size=32768"),
    "longer-config": (config(num_hidden_layers=4000), "lacks the weight"),
    "larger-vocab": (config(vocab_size=1 << 23), "has shape [1024, 32]"),
    "link": (link, LOADS),
    "link-to-nothing": (link_to("nowhere"), "has no weights"),
    "link-to-itself": (link_to("model.safetensors"), "has no weights"),
    "link-to-password": (link_to("/etc/passwd"), "Cannot read"),
    "link-to-zeros": (link_to("/dev/zero"), "has no weights"),
    "fifo": (fifo, "has no weights"),
    "pickle": (pickled("pytorch_model.bin"), "is a pickle"),
    "pickle-shard": (pickled("pytorch_model-00001-of-00002.bin"), "is a pickle"),
    "pickle-pt": (pickled("consolidated.00.pth"), "is a pickle"),
    "pickle-ckpt": (pickled("model.ckpt"), "is a pickle"),
    "pickle-as-safetensors": (pickled("model.safetensors"), "Cannot read"),
    "index": (index(lambda names: dict.fromkeys(names, "a.safetensors")), LOADS),
    "index-empty": (index(""), "not valid JSON"),
    "index-array": (index("[]"), "an object"),
    "index-nested": (index(NESTED), "nested too deeply"),
    "index-no-map": (index("{}"), "weight_map"),
    "index-empty-map": (index({}), "weight_map"),
    "index-list-map": (index([EMBEDDING]), "weight_map"),
    "index-text-map": (index("a.safetensors".join('""')), "an object"),
    "index-number": (index({EMBEDDING: 1}), "weight_map"),
    "index-null": (index({EMBEDDING: None}), "weight_map"),
    "index-list": (index({EMBEDDING: ["a.safetensors"]}), "weight_map"),
    "index-missing-shard": (index({EMBEDDING: "b.safetensors"}), "do not exist"),
    "index-no-name": (index({EMBEDDING: ""}), "weight_map"),
    "index-dots": (index({EMBEDDING: ".."}), "weight_map"),
    "index-null-byte": (index({EMBEDDING: "a\0b.safetensors"}), "weight_map"),
    "index-long": (index({EMBEDDING: "a" * 5000 + ".safetensors"}), "weight_map"),
    "index-newline": (index({EMBEDDING: "a\nb.safetensors"}), "weight_map"),
    "index-absolute": (index({EMBEDDING: "/etc/passwd"}), "weight_map"),
    "index-outside": (index({EMBEDDING: "../../x.safetensors"}), "do not exist"),
    "index-pickle": (index({EMBEDDING: "pytorch_model.bin"}), "weight_map"),
    "index-config": (index({EMBEDDING: "config.json"}), "weight_map"),
    "index-absent": (index({EMBEDDING: "a.safetensors", "x": "a.safetensors"}), "lacks the weight"),
    "index-partial": (index({EMBEDDING: "a.safetensors"}), "lacks the weight"),
    "index-metadata": (
        index(
            lambda names: dict.fromkeys(names, "a.safetensors"), metadata={"total_size": "x" * 99}
        ),
        LOADS,
    ),
}


# Tokenizers.


def tokenizer(*removed: str, **values: Any) -> Case:
    return edit("tokenizer.json", *removed, **values)


def settings(*removed: str, **values: Any) -> Case:
    return edit("tokenizer_config.json", *removed, **values)


VOCABULARY = {"unigram": 110, "bpe": 150}


def proto(change: Callable[[Any], Any], kind: str = "unigram", **other: Any) -> Case:
    """Replaces tokenizer.json by a SentencePiece model; `other` are files beside it."""

    def run(path: pathlib.Path) -> None:
        value: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore
        value.ParseFromString(sentencepiece_model(kind, vocab_size=VOCABULARY[kind]))
        change(value)
        (path / "tokenizer.json").unlink()
        (path / "tokenizer_config.json").unlink()
        (path / "spiece.model").write_bytes(value.SerializeToString())
        for name, content in other.items():
            (path / f"{name}.json").write_text(
                content if isinstance(content, str) else json.dumps(content)
            )

    return run


def spiece(content: bytes) -> Case:
    def run(path: pathlib.Path) -> None:
        (path / "tokenizer.json").unlink()
        (path / "spiece.model").write_bytes(content)

    return run


def unchanged(value: Any) -> None:
    del value


def added(**fields: Any) -> Case:
    token = {"id": 1023, "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False}
    return tokenizer(added_tokens=[token | {"normalized": False, "special": True} | fields])


UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["</s>", 0.0]]}
BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "</s>": 2, "ab": 3}, "merges": [["a", "b"]]}
SPIECE = {"eos_token": "</s>"}
TOKENIZERS: dict[str, tuple[Case, str]] = {
    "empty": (put("tokenizer.json", ""), "tokenizer"),
    "null": (put("tokenizer.json", None), "tokenizer"),
    "array": (put("tokenizer.json", []), "tokenizer"),
    "object": (put("tokenizer.json", {}), "tokenizer"),
    "nested": (put("tokenizer.json", NESTED), "tokenizer"),
    "binary": (put("tokenizer.json", b"\x80\x04\xff" * 50), "tokenizer"),
    "large": (lambda p: os.truncate(p / "tokenizer.json", 1 << 34), "bytes"),
    "no-model": (tokenizer("model"), "tokenizer"),
    "model-type": (tokenizer(model={"type": "Evil"}), "tokenizer"),
    "vocab-list": (tokenizer(model=BPE | {"vocab": [1]}), "tokenizer"),
    "vocab-negative": (tokenizer(model=BPE | {"vocab": {"a": -1}}), "tokenizer"),
    "vocab-2^40": (tokenizer(model=BPE | {"vocab": {"a": 1 << 40}, "merges": []}), "tokenizer"),
    "vocab-gap": (
        tokenizer(model=BPE | {"vocab": BPE["vocab"] | {"z": 4_000_000_000}}),
        "4000000001",
    ),
    "vocab-empty": (tokenizer(model=BPE | {"vocab": {}, "merges": []}), "tokenizer"),
    "merges-missing": (tokenizer(model=BPE | {"merges": [["a", "zz"]]}), "tokenizer"),
    "merges-number": (tokenizer(model=BPE | {"merges": 7}), "tokenizer"),
    "merges-one": (tokenizer(model=BPE | {"merges": ["ab"]}), "tokenizer"),
    "merges-three": (tokenizer(model=BPE | {"merges": ["a b c"]}), "tokenizer"),
    "unigram-empty": (tokenizer(model=UNIGRAM | {"vocab": []}), "tokenizer"),
    "unigram-unknown": (tokenizer(model=UNIGRAM | {"unk_id": 99}), "tokenizer"),
    "unigram-null-score": (tokenizer(model=UNIGRAM | {"vocab": [["a", None]]}), "tokenizer"),
    "unigram-nan": (
        put(
            "tokenizer.json",
            json.dumps({"model": UNIGRAM | {"vocab": [["<unk>", math.nan]]}, "added_tokens": []}),
        ),
        "tokenizer",
    ),
    "added-text": (tokenizer(added_tokens="x"), "tokenizer"),
    "added-negative": (added(id=-1), "tokenizer"),
    "added-huge": (added(id=10**12), "tokenizer"),
    "added-number": (added(content=7), "tokenizer"),
    "added-long": (added(content="x" * 10**6), LOADS),
    "normalizer": (tokenizer(normalizer={"type": "Evil"}), "tokenizer"),
    "normalizer-map": (
        tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "tokenizer",
    ),
    "pre-tokenizer-regex": (
        tokenizer(
            pre_tokenizer={
                "type": "Split",
                "pattern": {"Regex": "(((("},
                "behavior": "Isolated",
                "invert": False,
            }
        ),
        "tokenizer",
    ),
    "template-missing": (
        tokenizer(
            post_processor={
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<gone>", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        ),
        "tokenizer",
    ),
    "version": (tokenizer(version="99.0"), "tokenizer"),
    "truncation": (tokenizer(truncation={"max_length": -1}), "tokenizer"),
    "settings-array": (put("tokenizer_config.json", []), "tokenizer_config.json"),
    "settings-text": (put("tokenizer_config.json", '"x"'), "tokenizer_config.json"),
    "settings-broken": (put("tokenizer_config.json", "{"), "tokenizer_config.json"),
    "settings-nested": (put("tokenizer_config.json", NESTED), "tokenizer_config.json"),
    "settings-auto-map": (
        settings(
            tokenizer_class="EvilTokenizer", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
        ),
        "custom code",
    ),
    "settings-auto-map-text": (settings(auto_map="evil"), "auto_map"),
    "settings-class-list": (settings(tokenizer_class=["T5"]), "tokenizer_class"),
    "settings-eos-number": (settings(eos_token=7), "eos_token"),
    "settings-eos-list": (settings(eos_token=["</s>"]), "eos_token"),
    "settings-eos-object": (settings(eos_token={"evil": 1}), "eos_token"),
    "settings-eos-long": (settings(eos_token="x" * 10**6), "eos_token"),
    "settings-eos-unknown": (settings(eos_token="<gone>"), LOADS),
    "settings-decoder-list": (settings(added_tokens_decoder=[1]), "added_tokens_decoder"),
    "settings-decoder-id": (
        settings(added_tokens_decoder={"a": {"content": "x"}}),
        "added_tokens_decoder",
    ),
    "settings-decoder-huge": (
        settings(added_tokens_decoder={"1000000000000": {"content": "x"}}),
        "added_tokens_decoder",
    ),
    "settings-decoder-text": (settings(added_tokens_decoder={"5": "x"}), "added_tokens_decoder"),
    "settings-length-text": (settings(model_max_length="long"), "model_max_length"),
    "settings-special-number": (
        settings(additional_special_tokens=[1, 2]),
        "additional_special_tokens",
    ),
    "settings-extra-ids": (settings(extra_ids=10**9), "extra_ids"),
    "special-map-array": (put("special_tokens_map.json", []), "special_tokens_map.json"),
    "added-json-array": (put("added_tokens.json", []), "added_tokens.json"),
    "added-json-text": (put("added_tokens.json", {"x": "y"}), "added_tokens.json"),
    "template-number": (settings(chat_template=7), "chat_template"),
    "template-object": (settings(chat_template={"a": 1}), "chat_template"),
    "spiece": (proto(unchanged), LOADS),
    "spiece-bpe": (proto(unchanged, "bpe"), LOADS),
    "spiece-empty": (spiece(b""), "tokenizer"),
    "spiece-text": (spiece(b"hello world"), "tokenizer"),
    "spiece-cut": (
        lambda p: spiece(sentencepiece_model("unigram", vocab_size=VOCABULARY["unigram"])[:-700])(
            p
        ),
        "tokenizer",
    ),
    "spiece-large": (lambda p: (spiece(b"")(p), os.truncate(p / "spiece.model", 1 << 34)), "bytes"),
    "spiece-no-pieces": (proto(lambda m: m.ClearField("pieces")), "tokenizer"),
    "spiece-word": (proto(lambda m: setattr(m.trainer_spec, "model_type", 3)), "tokenizer"),
    "spiece-nan": (proto(lambda m: setattr(m.pieces[9], "score", math.nan)), "score"),
    "spiece-infinity": (proto(lambda m: setattr(m.pieces[9], "score", math.inf)), "score"),
    "spiece-nan-bpe": (proto(lambda m: setattr(m.pieces[90], "score", math.nan), "bpe"), "score"),
    "spiece-double": (proto(lambda m: setattr(m.pieces[9], "piece", m.pieces[8].piece)), "twice"),
    "spiece-empty-piece": (proto(lambda m: setattr(m.pieces[9], "piece", "")), "empty"),
    "spiece-long": (proto(lambda m: setattr(m.pieces[9], "piece", "x" * 10**5), "bpe"), "long"),
    "spiece-unknown": (proto(lambda m: setattr(m.trainer_spec, "unk_id", 5000)), "unk"),
    "spiece-no-unknown": (proto(lambda m: setattr(m.trainer_spec, "unk_id", -1)), "unk"),
    "spiece-map": (
        proto(lambda m: setattr(m.normalizer_spec, "precompiled_charsmap", b"\xff" * 7)),
        "tokenizer",
    ),
    "spiece-map-size": (
        proto(lambda m: setattr(m.normalizer_spec, "precompiled_charsmap", b"\xff" * 64)),
        "tokenizer",
    ),
    "spiece-extra-ids": (
        proto(unchanged, tokenizer_config=SPIECE | {"tokenizer_class": "T5", "extra_ids": 10**9}),
        "extra_ids",
    ),
    "spiece-extra-text": (
        proto(unchanged, tokenizer_config=SPIECE | {"tokenizer_class": "T5", "extra_ids": "x"}),
        "extra_ids",
    ),
    "spiece-decoder-huge": (
        proto(
            unchanged,
            tokenizer_config={"added_tokens_decoder": {"1000000000000": {"content": "<x>"}}},
        ),
        "added_tokens_decoder",
    ),
    "spiece-decoder-negative": (
        proto(unchanged, tokenizer_config={"added_tokens_decoder": {"-1": {"content": "<x>"}}}),
        "added_tokens_decoder",
    ),
    "spiece-added-huge": (proto(unchanged, added_tokens={"<x>": 10**12}), "added_tokens.json"),
    "spiece-settings-array": (proto(unchanged, tokenizer_config=[1]), "tokenizer_config.json"),
    "spiece-settings-nested": (proto(unchanged, tokenizer_config=NESTED), "tokenizer_config.json"),
    "spiece-map-json": (proto(unchanged, special_tokens_map={"eos_token": {}}), "eos_token"),
}
# Chat templates, and what the prompt becomes: "!" marks the part of an error.
TEMPLATES: dict[str, tuple[Any, str]] = {
    "plain": ("{% for m in messages %}[{{ m.content }}]{% endfor %}", "[Q: {question}]"),
    "loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "!took longer",
    ),
    "output": ("{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "!template"),
    "multiplication": ("{{ 'x' * 10 ** 11 }}", "!memory"),
    "power": ("{{ 10 ** (10 ** 10) }}", "!template"),
    "doubling": (
        "{% set n = namespace(t='x') %}"
        "{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
        "!memory",
    ),
    "padding": ("{{ 'x'.ljust(10 ** 11) }}", "!memory"),
    "filter": ("{{ 'x' | center(10 ** 11) }}", "!memory"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "!template"),
    "long-output": ("{{ 'x' * 10 ** 8 }}", "!characters"),
    "range": ("{% for i in range(10 ** 9) %}{% endfor %}", "!template"),
    "import": ("{% import 'os' as os %}{{ os.system('true') }}", "!template"),
    "include": ("{% include '/etc/passwd' %}", "!template"),
    "builtins": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "!template"),
    "globals": ("{{ messages.append.__globals__ }}", "!template"),
    "cycler": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "!template"),
    "syntax": ("{% for %}", "!template"),
    "raises": ("{{ raise_exception('no\nthis is a second line') }}", "!no this"),
    "nested-syntax": ("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", "!template"),
    "no-question": ("hello", "!{question}"),
    "large": ("x" * (1 << 22), "!characters"),
}
