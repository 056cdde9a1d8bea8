import itertools
import json
import shutil
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from kpod_jax.data.tokenizers import load_tokenizer
from kpod_jax.utils.errors import UserError

QUESTION = "Tom has 3 pens."


def test_directory_without_configuration_is_given_its_end_and_padding(byte_tokenizer):
    assert (byte_tokenizer.pad_token_id, byte_tokenizer.eos_token_id) == (0, 1)
    assert byte_tokenizer.is_fast


def test_tokenizer_json_file(byte_tokenizer_dir, byte_tokenizer):
    loaded = load_tokenizer(str(byte_tokenizer_dir / "tokenizer.json"))
    assert loaded(QUESTION).input_ids == byte_tokenizer(QUESTION).input_ids


@pytest.mark.parametrize("as_directory", [False, True])
def test_t5_model_file_gives_the_ids_of_sentencepiece(shared_data, tmp_path, as_directory):
    file = shared_data / "tokenizers" / "t5_spiece.model"
    if as_directory:
        (tmp_path / "spiece.model").write_bytes(file.read_bytes())
    loaded = load_tokenizer(str(tmp_path if as_directory else file))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(file))  # pyright: ignore
    assert loaded(QUESTION, add_special_tokens=False).input_ids == reference.Encode(QUESTION)
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)


def test_the_files_of_mt5_give_the_ids_of_sentencepiece(tmp_path):
    """Pieces of many languages, bytes for what they lack, and no sentinels beside them."""
    lines = ["Tom hat 3 Stifte.", "Том купил 14 ручек.", "小明有三支笔。", "كم قلما لديه؟"] * 20
    sentencepiece.SentencePieceTrainer.Train(  # pyright: ignore
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "spiece"),
        model_type="unigram",
        vocab_size=380,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    file = tmp_path / "spiece.model"
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(file))  # pyright: ignore
    loaded = load_tokenizer(str(tmp_path))
    for text in (*lines[:4], "पेन 🖊  3 × 14", ""):
        assert loaded(text).input_ids == [*reference.Encode(text), 1]
    assert len(loaded) == reference.GetPieceSize()


def test_llama_model_file_is_told_from_t5s_and_padded_with_its_end(shared_data):
    file = shared_data / "tokenizers" / "llama_tokenizer.model"
    loaded = load_tokenizer(str(file))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(file))  # pyright: ignore
    assert loaded(QUESTION, add_special_tokens=False).input_ids == reference.Encode(QUESTION)
    assert loaded.pad_token_id == loaded.eos_token_id == 2
    assert len(loaded) == 32000  # No token was added, so that a model's table still fits.


@pytest.mark.parametrize("name", ["./nothing", "nothing.model", "/no/such/place"])
def test_missing_path_is_not_looked_for_on_the_hub(name):
    with pytest.raises(UserError, match=r"no such file.*Hugging Face id"):
        load_tokenizer(name)


def test_unknown_hub_id_offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"'nobody/nothing'.*network"):
        load_tokenizer("nobody/nothing")


@pytest.mark.parametrize("name", ["broken.model", "broken.json", "broken.txt"])
def test_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_text("not a tokenizer")
    with pytest.raises(UserError, match=name):
        load_tokenizer(str(tmp_path / name))


def test_tokenizer_without_an_end_token(tmp_path):
    tokenizers.Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")).save(
        str(tmp_path / "tokenizer.json")
    )
    with pytest.raises(UserError, match="eos_token"):
        load_tokenizer(str(tmp_path))


MODELS = ("t5_spiece.model", "llama_tokenizer.model")
# Without accents on full-width letters or in an unusual order.
PARTS = [
    *"ab3.,! \n\t  How$%()<>{}\\\\^~`|_",
    *"\u00a0\u200b\u3000\u2028\u0085\x00\x07\u00ad\ufeff",
]
PARTS += [*"\u200dé漢😀ﬁ½…“”’–−×÷≈√²①Ａ１가▁", "e\u0301", "\r\n", "  ", " " * 19, "<0x41>"]


def both(shared_data, model):
    file = str(shared_data / "tokenizers" / model)
    reference = sentencepiece.SentencePieceProcessor(model_file=file)  # pyright: ignore
    return load_tokenizer(file), reference


@pytest.mark.parametrize("model", MODELS)
def test_ids_of_gsm8k_are_those_of_sentencepiece(shared_data, model):
    loaded, reference = both(shared_data, model)
    lines = (shared_data / "gsm8k/train.jsonl").read_text().splitlines()
    texts = [*itertools.chain.from_iterable(json.loads(line).values() for line in lines)]
    assert len(texts) == 2 * 7473
    assert loaded(texts, add_special_tokens=False).input_ids == reference.Encode(texts)


@pytest.mark.parametrize("model", MODELS)
def test_ids_of_hostile_texts_are_those_of_sentencepiece(shared_data, model):
    loaded, reference = both(shared_data, model)
    special = loaded.all_special_tokens

    @given(st.lists(st.sampled_from(PARTS), max_size=12).map("".join))
    @settings(max_examples=300, deadline=None)
    def check(text):
        if not any(token in text for token in special):
            assert loaded(text, add_special_tokens=False).input_ids == reference.Encode(text)

    check()


def added(content, **options):
    flags = {"lstrip": False, "rstrip": False, "normalized": True, "single_word": False}
    return {"content": content, "special": True} | flags | options


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
NAMED = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<unk>"}
DECODER = {"32000": added("<|im_start|>"), "32001": added("<|im_end|>", normalized=False)}
TYPED = {"__type": "AddedToken", **added("<s>")}
CHAT = NAMED | {"chat_template": CHATML}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": CHAT | {"added_tokens_decoder": DECODER}},
        {"tokenizer_config.json": CHAT | {"added_tokens_decoder": DECODER, "bos_token": TYPED}},
        {"tokenizer_config.json": CHAT | {"added_tokens_decoder": DECODER, "legacy": False}},
        {
            "tokenizer_config.json": NAMED | {"added_tokens_decoder": DECODER},
            "chat_template.jinja": CHATML,
        },
        {
            "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "chat_template": CHATML},
            "special_tokens_map.json": NAMED | {"additional_special_tokens": ["<|im_start|>"]},
            "added_tokens.json": {"<|im_start|>": 32000, "<|im_end|>": 32001},
        },
        {
            "tokenizer_config.json": CHAT
            | {"added_tokens_decoder": DECODER, "auto_map": {"AutoTokenizer": ["evil.py", None]}},
        },
    ],
)
def test_special_tokens_and_chat_template_of_a_directory(shared_data, tmp_path, files):
    shutil.copy(shared_data / "tokenizers/llama_tokenizer.model", tmp_path / "tokenizer.model")
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
    loaded = load_tokenizer(str(tmp_path))
    assert len(loaded) == 32002
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 32001, 0)
    assert loaded("Hi").input_ids == [1, 6324]
    text: Any = loaded.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>"
    ids = loaded(text, add_special_tokens=False).input_ids
    assert (ids[0], ids[-1], ids.count(32000), ids.count(32001)) == (32000, 32001, 1, 1)
    loaded.save_pretrained(tmp_path / "again")
    again = load_tokenizer(str(tmp_path / "again"))
    assert (again.chat_template, again.special_tokens_map) == (
        loaded.chat_template,
        loaded.special_tokens_map,
    )
    for part in (QUESTION, "  two  spaces", text):
        assert again(part).input_ids == loaded(part).input_ids


@pytest.mark.parametrize(
    ("model", "config", "ids", "size"),
    [
        ("llama_tokenizer", {"add_bos_token": False}, [6324], 32000),
        ("llama_tokenizer", {"add_eos_token": True}, [1, 6324, 2], 32000),
        ("llama_tokenizer", {"add_prefix_space": False}, [1, 18567], 32000),
        ("llama_tokenizer", {"added_tokens_decoder": {"32005": added("<x>")}}, [1, 6324], 32006),
        ("llama_tokenizer", {"added_tokens_decoder": {"31999": added("<x>")}}, [1, 6324], 32000),
        ("t5_spiece", {}, [2018, 1], 32100),
        ("t5_spiece", {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}, [2018, 1], 32000),
    ],
)
def test_settings_of_a_directory(shared_data, tmp_path, model, config, ids, size):
    shutil.copy(shared_data / f"tokenizers/{model}.model", tmp_path / "spiece.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded("Hi").input_ids, len(loaded)) == (ids, size)
    for place in config.get("added_tokens_decoder", {}):
        assert loaded("<x>", add_special_tokens=False).input_ids == [int(place)]
    if size == 32100:
        assert loaded.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>"]) == [32099, 32000]
