"""Hostile and damaged GGUF files, written byte by byte."""

import math
import os
import pathlib
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

U8, I32, U32, F32, BOOL, TEXT, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10
_FORMATS = {U8: "B", I32: "i", U32: "I", F32: "f", BOOL: "B", U64: "Q"}
Field = tuple[int, Any] | bytes
LOADS = ""
TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "ab", "▁", "▁a"]


def text(value: str | bytes) -> bytes:
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


def array(kind: int, values: Any, count: int | None = None) -> bytes:
    """An array's type and contents; `count` is what it claims to hold."""
    parts = [text(v) if kind == TEXT else struct.pack(f"<{_FORMATS[kind]}", v) for v in values]
    claim = len(parts) if count is None else count
    return struct.pack("<IIQ", ARRAY, kind, claim) + b"".join(parts)


def encoded(field: Field) -> bytes:
    if isinstance(field, bytes):
        return field
    kind, value = field
    body = text(value) if kind == TEXT else struct.pack(f"<{_FORMATS[kind]}", value)
    return struct.pack("<I", kind) + body


FIELDS: dict[str, Field] = {
    "general.architecture": (TEXT, "llama"),
    "llama.block_count": (U32, 1),
    "llama.context_length": (U32, 64),
    "llama.embedding_length": (U32, 16),
    "llama.feed_forward_length": (U32, 32),
    "llama.attention.head_count": (U32, 4),
    "llama.attention.head_count_kv": (U32, 2),
    "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
    "tokenizer.ggml.model": (TEXT, "llama"),
    "tokenizer.ggml.tokens": array(TEXT, TOKENS),
    "tokenizer.ggml.scores": array(F32, [-float(i) for i in range(len(TOKENS))]),
    "tokenizer.ggml.token_type": array(I32, [2, 3, 3, 1, 1, 1, 1, 1]),
    "tokenizer.ggml.eos_token_id": (U32, 2),
}
TENSORS: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (16, 8),
    "output_norm.weight": (16,),
    "blk.0.attn_norm.weight": (16,),
    "blk.0.ffn_norm.weight": (16,),
    "blk.0.attn_q.weight": (16, 16),
    "blk.0.attn_k.weight": (16, 8),
    "blk.0.attn_v.weight": (16, 8),
    "blk.0.attn_output.weight": (16, 16),
    "blk.0.ffn_gate.weight": (16, 32),
    "blk.0.ffn_up.weight": (16, 32),
    "blk.0.ffn_down.weight": (32, 16),
}
# Type and offset of a tensor; None: float32, after the one before.
Info = tuple[tuple[int, ...], int | None, int | None]


def write(
    path: pathlib.Path,
    fields: dict[str, Any] | None = None,
    tensors: dict[str, Any] | None = None,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int | None, int | None] = (None, None),
    alignment: int = 32,
    more: bytes = b"",
    cut: int | None = None,
    size: int | None = None,
    fill: float = 0.0,
) -> None:
    """Writes a small LLaMA's file with changed fields, tensors and header; None removes one.

    Args:
      path: of the file.
      fields: changed fields.
      tensors: changed tensors: dimensions, or (dimensions, type, offset).
      magic: first bytes.
      version: of the format.
      counts: claimed numbers of tensors and fields.
      alignment: of the data.
      more: bytes after the fields.
      cut: length to which the file is cut.
      size: length to which the file is extended by a hole.
      fill: value of all weights.
    """
    given = {k: v for k, v in (FIELDS | (fields or {})).items() if v is not None}
    infos = {k: v for k, v in (TENSORS | (tensors or {})).items() if v is not None}
    body, offset, data = b"".join(text(k) + encoded(v) for k, v in given.items()) + more, 0, b""
    for name, info in infos.items():
        whole: Any = info if isinstance(info[0], tuple) else (info, None, None)
        dims, kind, place = whole
        body += text(name) + struct.pack("<I", len(dims))
        body += b"".join(struct.pack("<Q", size) for size in dims)
        body += struct.pack("<IQ", kind or 0, offset if place is None else place)
        count = math.prod(dims)
        if place is None and count < 1 << 20:
            data += np.full(count, fill, np.float32).tobytes()
            data += b"\0" * (-len(data) % alignment)
            offset = len(data)
    claimed = [len(x) if n is None else n for n, x in zip(counts, (infos, given), strict=True)]
    head = magic + struct.pack("<IQQ", version, *claimed) + body
    content = head + b"\0" * (-len(head) % alignment) + data
    path.write_bytes(content if cut is None else content[:cut])
    if size is not None:
        os.truncate(path, size)


def case(*args: Any, **kwargs: Any) -> Callable[[pathlib.Path], None]:
    return lambda path: write(path, *args, **kwargs)


def field(name: str, value: Any) -> Callable[[pathlib.Path], None]:
    return case({name if "." in name and name.split(".")[0] in KEYS else f"llama.{name}": value})


def tensor(name: str, dims: Any, kind: int | None = None, offset: int | None = None) -> Any:
    return case(tensors={name: (dims, kind, offset) if dims is not None else None})


def big_endian(path: pathlib.Path) -> None:
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + b"\0" * 64)


def tokens(path: pathlib.Path, *, model: str = "llama", **values: Any) -> None:
    write(
        path,
        {"tokenizer.ggml.model": (TEXT, model)}
        | {f"tokenizer.ggml.{key}": value for key, value in values.items()},
    )


KEYS = ("general", "tokenizer", "split")
NESTED = struct.pack("<IIQ", ARRAY, ARRAY, 1)
INNER = struct.pack("<IQI", U32, 1, 7)
DEEP = struct.pack("<II", ARRAY, ARRAY) + struct.pack("<QI", 1, ARRAY) * 50_000
DUPLICATE = text("llama.block_count") + encoded((U32, 1))
MERGES = array(TEXT, ["a b"])
CASES: dict[str, tuple[Callable[[pathlib.Path], Any], str]] = {
    "whole": (case(), LOADS),
    "version-2": (case(version=2), LOADS),
    "empty": (case(cut=0), "Cannot read"),
    "short": (case(cut=12), "Cannot read"),
    "cut-fields": (case(cut=200), "Cannot read"),
    "cut-tensors": (case(cut=900), "Cannot read"),
    "cut-data": (case(cut=3000), "beyond the end"),
    "magic": (case(magic=b"GGML"), "magic"),
    "pickle": (case(magic=b"\x80\x04\x95\x10"), "magic"),
    "html": (lambda p: p.write_bytes(b"<!DOCTYPE html>" * 99), "magic"),
    "lfs": (
        lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "Git LFS",
    ),
    "version-0": (case(version=0), "version 0"),
    "version-1": (case(version=1), "version 1"),
    "version-99": (case(version=99), "version 99"),
    "big-endian": (big_endian, "big-endian"),
    "no-tensors": (case(tensors=dict.fromkeys(TENSORS)), "token_embd.weight"),
    "no-fields": (case(dict.fromkeys(FIELDS)), "general.architecture"),
    "tensors-2^33": (case(counts=(1 << 33, None)), "tensors"),
    "tensors-2^63": (case(counts=(1 << 63, None)), "tensors"),
    "fields-2^33": (case(counts=(None, 1 << 33)), "fields"),
    "more-fields": (case(counts=(None, 50)), "Cannot read"),
    "duplicate-key": (case(more=DUPLICATE, counts=(None, len(FIELDS) + 1)), "twice"),
    "array-2^33": (field("general.a", array(U32, [], 1 << 33)), "Cannot read"),
    "array-2^33-bytes": (case({"general.a": array(U8, [], 1 << 33)}, size=1 << 34), "Cannot read"),
    "array-2^33-texts": (field("general.a", array(TEXT, [], 1 << 33)), "Cannot read"),
    "array-2^63": (field("general.a", array(U64, [], 1 << 63)), "Cannot read"),
    "array-2^26-bytes": (case({"general.a": array(U8, [], 1 << 26)}, size=1 << 34), "Cannot read"),
    "array-type": (field("general.a", struct.pack("<IIQ", ARRAY, 77, 1)), "type 77"),
    "array-empty": (field("general.a", array(U32, [])), LOADS),
    "array-nested": (field("general.a", NESTED + INNER), "array of arrays"),
    "array-deep": (field("general.a", DEEP), "array of arrays"),
    "field-type": (field("general.a", struct.pack("<I", 13)), "type 13"),
    "text-2^63": (field("general.a", struct.pack("<IQ", TEXT, 1 << 63)), "Cannot read"),
    "text-beyond": (field("general.a", struct.pack("<IQ", TEXT, 1 << 20)), "Cannot read"),
    "text-hole": (
        case({"general.a": struct.pack("<IQ", TEXT, 1 << 33)}, size=1 << 34),
        "Cannot read",
    ),
    "text-not-utf8": (field("general.architecture", (TEXT, b"ll\xffma")), "UTF-8"),
    "key-newline": (field("general.a\nb\x1b[0m", (U32, 1)), "Cannot read"),
    "key-long": (field("general." + "x" * 100_000, (U32, 1)), "Cannot read"),
    "bool-7": (field("tokenizer.ggml.add_bos_token", (BOOL, 7)), LOADS),
    "alignment-0": (field("general.alignment", (U32, 0)), "alignment"),
    "alignment-7": (field("general.alignment", (U32, 7)), "alignment"),
    "alignment-text": (field("general.alignment", (TEXT, "32")), "general.alignment"),
    "alignment-2^31": (field("general.alignment", (U32, 1 << 31)), "beyond the end"),
    "alignment-64": (case({"general.alignment": (U32, 64)}, alignment=64), LOADS),
    "architecture-number": (field("general.architecture", (U32, 1)), "general.architecture"),
    "architecture-list": (
        field("general.architecture", array(TEXT, ["llama"])),
        "general.architecture",
    ),
    "architecture": (field("general.architecture", (TEXT, "mamba")), "architecture 'mamba'"),
    "type-list": (field("general.type", array(U32, [1])), "general.type"),
    "zero-heads": (field("attention.head_count", (U32, 0)), "attention.head_count"),
    "zero-kv-heads": (field("attention.head_count_kv", (U32, 0)), "attention.head_count_kv"),
    "heads-text": (field("attention.head_count", (TEXT, "4")), "attention.head_count"),
    "heads-empty": (field("attention.head_count", array(U32, [])), "attention.head_count"),
    "heads-texts": (field("attention.head_count", array(TEXT, ["4"])), "attention.head_count"),
    "heads-divide": (field("attention.head_count", (U32, 3)), "divide"),
    "heads-float": (field("attention.head_count", (F32, 4.0)), "attention.head_count"),
    "layers": (field("block_count", (U32, 10**9)), "num_hidden_layers is 1000000000"),
    "layers-negative": (field("block_count", (I32, -1)), "block_count"),
    "layers-more": (field("block_count", (U32, 3)), "lacks the weight"),
    "layers-array": (field("block_count", array(U32, [1])), "block_count"),
    "width": (field("embedding_length", (U64, 1 << 40)), "embedding_length"),
    "width-differs": (field("embedding_length", (U32, 32)), "has shape"),
    "width-zero": (field("embedding_length", (U32, 0)), "embedding_length"),
    "width-missing": (field("embedding_length", None), "embedding_length"),
    "inner-zero": (field("feed_forward_length", (U32, 0)), "feed_forward_length"),
    "context-zero": (field("context_length", (U32, 0)), "context_length"),
    "context-text": (field("context_length", (TEXT, "64")), "context_length"),
    "epsilon-nan": (
        field("attention.layer_norm_rms_epsilon", (F32, math.nan)),
        "attention.layer_norm_rms_epsilon",
    ),
    "epsilon-text": (
        field("attention.layer_norm_rms_epsilon", (TEXT, "1")),
        "attention.layer_norm_rms_epsilon",
    ),
    "theta-infinity": (field("rope.freq_base", (F32, math.inf)), "rope.freq_base"),
    "theta-zero": (field("rope.freq_base", (F32, 0.0)), "rope.freq_base"),
    "scaling-number": (field("rope.scaling.type", (U32, 1)), "rope.scaling.type"),
    "scaling-nan": (field("rope.scaling.factor", (F32, math.nan)), "rope.scaling.factor"),
    "scaling-negative": (field("rope.scaling.factor", (F32, -2.0)), "rope.scaling.factor"),
    "scaling-text": (field("rope.scaling.factor", (TEXT, "2")), "rope.scaling.factor"),
    "window-text": (field("attention.sliding_window", (TEXT, "4")), "attention.sliding_window"),
    "experts-text": (field("expert_count", (TEXT, "8")), "expert_count"),
    "cap-list": (field("attn_logit_softcapping", array(F32, [1.0])), "attn_logit_softcapping"),
    "eos-text": (field("tokenizer.ggml.eos_token_id", (TEXT, "2")), "eos_token_id"),
    "eos-negative": (field("tokenizer.ggml.eos_token_id", (I32, -5)), "eos_token_id"),
    "eos-beyond": (field("tokenizer.ggml.eos_token_id", (U32, 999)), LOADS),
    "split-text": (field("split.count", (TEXT, "2")), "split.count"),
    "split-tensors": (field("split.tensors.count", (U32, 10**6)), "is a part of a model"),
    "dims-0": (tensor("output_norm.weight", ()), "dimensions"),
    "dims-5": (tensor("output_norm.weight", (2, 2, 2, 2, 1)), "dimensions"),
    "dims-2^31": (
        lambda p: (
            write(p),
            p.write_bytes(
                p.read_bytes().replace(
                    text("output_norm.weight") + struct.pack("<I", 1),
                    text("output_norm.weight") + struct.pack("<I", 1 << 31),
                )
            ),
        ),
        "dimensions",
    ),
    "dim-zero": (tensor("output_norm.weight", (0,)), "output_norm.weight"),
    "dim-2^62": (tensor("output_norm.weight", (1 << 62, 4), 0, 0), "beyond the end"),
    "dim-overflow": (tensor("output_norm.weight", (1 << 32, 1 << 32), 0, 0), "beyond the end"),
    "dim-2^40-hole": (
        case(tensors={"output_norm.weight": ((1 << 31,), 0, 1 << 20)}, size=1 << 34),
        "has shape",
    ),
    "offset-beyond": (tensor("output_norm.weight", (16,), 0, 1 << 40), "beyond the end"),
    "offset-2^63": (tensor("output_norm.weight", (16,), 0, 1 << 63), "beyond the end"),
    "offset-odd": (tensor("output_norm.weight", (16,), 0, 7), "offset"),
    "overlap": (tensor("output_norm.weight", (16,), 0, 0), "overlap"),
    "type-99": (tensor("output_norm.weight", (16,), 99), "type 99"),
    "type-removed": (tensor("output_norm.weight", (16,), 4), "type 4"),
    "type-i32": (tensor("output_norm.weight", (16,), 26), "I32"),
    "type-block": (tensor("output_norm.weight", (16,), 8), "block"),
    "type-k": (tensor("output_norm.weight", (16,), 14), "block"),
    "embedding-1d": (tensor("token_embd.weight", (128,)), "has shape"),
    "embedding-3d": (tensor("token_embd.weight", (16, 4, 2)), "has shape"),
    "embedding-narrow": (tensor("token_embd.weight", (8, 16)), "has shape"),
    "query-narrow": (tensor("blk.0.attn_q.weight", (16, 6)), "has shape"),
    "query-vector": (tensor("blk.0.attn_q.weight", (5,)), "has shape"),
    "missing": (tensor("blk.0.ffn_down.weight", None), "lacks the weight"),
    "extra": (tensor("blk.0.evil.weight", (4,)), "has the weight"),
    "name-newline": (tensor("a\nb\x1b[31m", (4,)), "name"),
    "name-empty": (tensor("", (4,)), "name"),
    "rope-divisors": (tensor("rope_freqs.weight", (2,)), "RoPE scaling"),
    "rope-divisors-shape": (tensor("rope_freqs.weight", (2, 2, 2)), "rope_freqs.weight"),
    "weights-nan": (case(fill=math.nan), "finite"),
    "tokens-fewer": (
        lambda p: tokens(
            p,
            tokens=array(TEXT, TOKENS[:4]),
            scores=array(F32, [0.0] * 4),
            token_type=array(I32, [2, 3, 3, 1]),
        ),
        LOADS,
    ),
    "tokens-more": (
        lambda p: tokens(
            p,
            tokens=array(TEXT, [*TOKENS, "more"]),
            scores=array(F32, [0.0] * 9),
            token_type=array(I32, [1] * 9),
        ),
        "9 tokens",
    ),
    "tokens-none": (lambda p: tokens(p, tokens=array(TEXT, [])), "tokenizer.ggml.tokens"),
    "tokens-numbers": (lambda p: tokens(p, tokens=array(U32, [1, 2])), "tokenizer.ggml.tokens"),
    "tokens-text": (lambda p: tokens(p, tokens=(TEXT, "ab")), "tokenizer.ggml.tokens"),
    "tokens-missing": (lambda p: tokens(p, tokens=None), "tokenizer.ggml.tokens"),
    "tokens-long": (
        lambda p: tokens(p, tokens=array(TEXT, [*TOKENS[:7], "x" * 10**5])),
        "long",
    ),
    "scores-fewer": (lambda p: tokens(p, scores=array(F32, [0.0])), "tokenizer.ggml.scores"),
    "scores-nan": (lambda p: tokens(p, scores=array(F32, [math.nan] * 8)), "tokenizer.ggml.scores"),
    "scores-texts": (lambda p: tokens(p, scores=array(TEXT, TOKENS)), "tokenizer.ggml.scores"),
    "scores-missing": (lambda p: tokens(p, scores=None), "tokenizer.ggml.scores"),
    "types-fewer": (lambda p: tokens(p, token_type=array(I32, [1])), "tokenizer.ggml.token_type"),
    "types-texts": (
        lambda p: tokens(p, token_type=array(TEXT, TOKENS)),
        "tokenizer.ggml.token_type",
    ),
    "model-number": (
        lambda p: write(p, {"tokenizer.ggml.model": (U32, 1)}),
        "tokenizer.ggml.model",
    ),
    "model": (lambda p: tokens(p, model="evil"), "'evil'"),
    "merges-missing": (lambda p: tokens(p, model="gpt2"), "tokenizer.ggml.merges"),
    "merges": (lambda p: tokens(p, model="gpt2", merges=MERGES), LOADS),
    "merges-one": (
        lambda p: tokens(p, model="gpt2", merges=array(TEXT, ["ab"])),
        "tokenizer.ggml.merges",
    ),
    "merges-unknown": (
        lambda p: tokens(p, model="gpt2", merges=array(TEXT, ["a zz"])),
        "tokenizer",
    ),
    "merges-numbers": (
        lambda p: tokens(p, model="gpt2", merges=array(U32, [1])),
        "tokenizer.ggml.merges",
    ),
    "pre-number": (lambda p: tokens(p, model="gpt2", pre=(U32, 1)), "tokenizer.ggml.pre"),
    "pre-list": (
        lambda p: tokens(p, model="gpt2", merges=MERGES, pre=array(TEXT, ["x"])),
        "tokenizer.ggml.pre",
    ),
    "t5-nan": (
        lambda p: tokens(p, model="t5", scores=array(F32, [math.nan] * 8)),
        "tokenizer.ggml.scores",
    ),
    "t5-map": (
        lambda p: tokens(p, model="t5", precompiled_charsmap=array(U8, [255] * 7)),
        "tokenizer",
    ),
    "t5-map-text": (
        lambda p: tokens(p, model="t5", precompiled_charsmap=(TEXT, "abc")),
        "tokenizer.ggml.precompiled_charsmap",
    ),
    "add-bos-text": (lambda p: tokens(p, add_bos_token=(TEXT, "no")), "add_bos_token"),
    "template-number": (
        lambda p: write(p, {"tokenizer.chat_template": (U32, 1)}),
        "tokenizer.chat_template",
    ),
}
