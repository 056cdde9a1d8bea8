"""Tokenizers of GGUF files, against the tokenizers that the files are made of."""

import json
from typing import Any

import gguf
import pytest
import sentencepiece
import tokenizers
import transformers
from tokenizers import normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from kpod_jax.data.tokenizers import load_tokenizer
from kpod_jax.models import hub
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.utils.errors import UserError
from tests.data import gguf_files

LLAMA3_REGEX = TikTokenConverter().pattern


def _split(pattern: str) -> Any:
    words = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([words, letters])


# As tokenizer.json of the models has them.
BYTE_LEVEL = {
    "gpt-2": lambda: (pre_tokenizers.ByteLevel(add_prefix_space=False),),
    "smollm": lambda: (
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        ),
    ),
    "qwen2": lambda: (_split(PRETOKENIZE_REGEX), normalizers.NFC()),
    "llama-bpe": lambda: (_split(LLAMA3_REGEX),),
    "dbrx": lambda: (_split(LLAMA3_REGEX),),
    "gpt-4o": lambda: (_split(GGUF_PRE_TOKENIZER_SPLITS["gpt-4o"]),),
}
LLAMA = {
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "vocab_size": 420,
}
SENTENCEPIECE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("bpe", LLAMA),
    "llama-no-prefix": ("bpe", LLAMA | {"add_dummy_prefix": False}),
    "llama-no-bytes": ("bpe", LLAMA | {"byte_fallback": False, "vocab_size": 164}),
    "t5": (
        "unigram",
        {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 110},
    ),
}


@pytest.fixture(scope="module", params=BYTE_LEVEL)
def byte_level(request, tmp_path_factory):
    """The kind, its GGUF file and the tokenizer that this is made of."""
    tokenizer = gguf_files.train(*BYTE_LEVEL[request.param]())
    path = tmp_path_factory.mktemp(request.param) / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    gguf_files.add_byte_level(writer, tokenizer, request.param)
    gguf_files.finish(writer)
    return request.param, path, tokenizer


@pytest.fixture(scope="module", params=SENTENCEPIECE)
def pieces(request, tmp_path_factory):
    """The kind, its GGUF file and the SentencePiece model that this is made of."""
    kind, options = SENTENCEPIECE[request.param]
    model = gguf_files.sentencepiece_model(kind, **options)
    path = tmp_path_factory.mktemp(request.param) / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    gguf_files.add_sentencepiece(writer, model, request.param.partition("-")[0])
    gguf_files.finish(writer)
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)  # pyright: ignore
    return request.param, path, reference


def test_byte_level_ids_are_those_of_the_original(byte_level):
    kind, path, reference = byte_level
    loaded = load_tokenizer(str(path))
    assert loaded.get_vocab() == reference.get_vocab()
    for text in gguf_files.PLAIN + gguf_files.ODD:
        ids = reference.encode(text).ids
        assert loaded(text, add_special_tokens=False).input_ids == ids, text
        assert loaded.decode(ids) == reference.decode(ids, skip_special_tokens=False)
        # Of LLaMA 3's files those that do not say so begin texts, too.
        begin = [1] if kind == "llama-bpe" else []
        assert loaded(text).input_ids == begin + ids
    assert loaded.convert_ids_to_tokens([0, 1, 2]) == gguf_files.CONTROL
    assert (loaded.pad_token_id, loaded.bos_token_id, loaded.eos_token_id) == (0, 1, 2)


def test_byte_level_ids_are_those_of_transformers(byte_level):
    _, path, _ = byte_level
    loaded = load_tokenizer(str(path))
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(
        path.parent, gguf_file=path.name
    )
    for text in gguf_files.PLAIN:
        expected = reference(text, add_special_tokens=False).input_ids
        assert loaded(text, add_special_tokens=False).input_ids == expected, text
    turns = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": " 12 "}]
    for start in (False, True):
        expected = reference.apply_chat_template(turns, add_generation_prompt=start)
        assert loaded.apply_chat_template(turns, add_generation_prompt=start) == expected


def test_a_word_of_llama_3_that_is_a_token_stays_whole(tmp_path):
    """Even where no merges lead to it, as for some of its 128,000 tokens."""
    found = {}
    for kind in ("llama-bpe", "gpt-2"):
        tokenizer = gguf_files.train(*BYTE_LEVEL[kind]())
        value = json.loads(tokenizer.to_str())
        model = value["model"]
        model["vocab"]["Ġzzz"] = len(model["vocab"])
        value["added_tokens"] = value["added_tokens"][:3]  # Those in the vocabulary.
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(value))
        writer = gguf.GGUFWriter(path := tmp_path / f"{kind}.gguf", "llama")
        gguf_files.add_byte_level(writer, tokenizer, kind)
        gguf_files.finish(writer)
        found[kind] = load_tokenizer(str(path)).tokenize(" zzz")
    assert found == {"llama-bpe": ["Ġzzz"], "gpt-2": ["Ġ", "z", "z", "z"]}


def test_sentencepiece_ids_are_those_of_sentencepiece(pieces):
    kind, path, reference = pieces
    loaded = load_tokenizer(str(path))
    assert len(loaded) == len(reference)
    for text in gguf_files.PLAIN + gguf_files.ODD:
        ids = reference.Encode(text)
        assert loaded(text, add_special_tokens=False).input_ids == ids, text
        full = [*ids, 1] if kind == "t5" else [1, *ids]
        assert loaded(text).input_ids == full
        if reference.unk_id() not in ids:
            assert loaded.decode(full, skip_special_tokens=True) == reference.Decode(ids)


def test_special_tokens_of_sentencepiece_are_found_in_texts(pieces):
    _, path, reference = pieces
    loaded = load_tokenizer(str(path))
    ids = loaded("</s>Tom<unk>", add_special_tokens=False).input_ids
    inner = reference.Encode("Tom")
    assert ids == [reference.eos_id(), *inner, reference.unk_id()]
    assert loaded.unk_token_id == reference.unk_id()


@pytest.mark.parametrize("pieces", ["llama"], indirect=True)
def test_llama_ids_are_those_of_transformers(pieces):
    _, path, _ = pieces
    loaded = load_tokenizer(str(path))
    reference = transformers.LlamaTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in gguf_files.PLAIN:
        assert loaded(text).input_ids == reference(text).input_ids, text


@pytest.mark.parametrize(
    ("byte_level", "model_type"),
    [
        ("gpt-2", "llama"),
        ("smollm", "llama"),
        ("llama-bpe", "llama"),
        ("qwen2", "qwen2"),
        ("qwen2", "qwen3"),
    ],
    indirect=["byte_level"],
)
def test_an_export_of_byte_level_has_the_same_ids(byte_level, model_type, tmp_path):
    _check_export(byte_level[1], model_type, tmp_path)


def test_an_export_of_sentencepiece_has_the_same_ids(pieces, tmp_path):
    _check_export(pieces[1], "llama", tmp_path)


def _check_export(path, model_type, directory) -> None:
    loaded = load_tokenizer(str(path))
    hub.save_tokenizer(directory, loaded)
    config = LlamaConfig(model_type=model_type)
    (directory / "config.json").write_text(json.dumps(config.to_json()))
    again = load_tokenizer(str(directory))
    assert again.chat_template == loaded.chat_template
    assert again.special_tokens_map == loaded.special_tokens_map
    for text in gguf_files.PLAIN + gguf_files.ODD:
        ids = loaded(text).input_ids
        assert again(text).input_ids == ids, text
        assert again.decode(ids) == loaded.decode(ids)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "kind"), [("llama_tokenizer", "llama"), ("t5_spiece", "t5")])
def test_real_vocabularies_give_the_ids_of_sentencepiece(shared_data, tmp_path, file, kind):
    model = (shared_data / "tokenizers" / f"{file}.model").read_bytes()
    writer = gguf.GGUFWriter(path := tmp_path / "real.gguf", "llama")
    gguf_files.add_sentencepiece(writer, model, kind)
    gguf_files.finish(writer)
    loaded = load_tokenizer(str(path))
    reference = sentencepiece.SentencePieceProcessor(model_proto=model)  # pyright: ignore
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text().splitlines()[:200]
    texts = [text for line in lines for text in json.loads(line).values()]
    for text in texts + gguf_files.PLAIN + gguf_files.ODD:
        assert loaded(text, add_special_tokens=False).input_ids == reference.Encode(text), text


@pytest.mark.parametrize(
    ("model", "pre", "message"),
    [
        ("bert", "default", r"tokenizer 'bert'.*expected one of gpt2, llama, t5"),
        ("gpt2", "tekken", r"'tekken'.*expected one of default, gpt-2, smollm, qwen2"),
    ],
)
def test_other_kinds_are_named(tmp_path, model, pre, message):
    writer = gguf.GGUFWriter(path := tmp_path / "other.gguf", "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(["a", "b"])
    gguf_files.finish(writer)
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(path))


def test_a_file_without_tokens_is_named(tmp_path):
    writer = gguf.GGUFWriter(path := tmp_path / "none.gguf", "llama")
    writer.add_tokenizer_model("llama")
    gguf_files.finish(writer)
    with pytest.raises(UserError, match=r"none\.gguf lacks the field tokenizer\.ggml\.tokens"):
        load_tokenizer(str(path))
