import pytest
import tokenizers
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
    import sentencepiece

    file = shared_data / "tokenizers" / "t5_spiece.model"
    if as_directory:
        (tmp_path / "spiece.model").write_bytes(file.read_bytes())
    loaded = load_tokenizer(str(tmp_path if as_directory else file))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(file))  # pyright: ignore
    assert loaded(QUESTION, add_special_tokens=False).input_ids == reference.Encode(QUESTION)
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)


def test_llama_model_file_is_told_from_t5s_and_padded_with_its_end(shared_data):
    import sentencepiece

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
