"""Loads SentencePiece `.model` files with the special tokens and chat template beside them."""

import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kpod_jax.data import tokenizer_files
from kpod_jax.data.sentencepiece_tokenizer import CONTROL, USER_DEFINED, Pieces, build

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

# Values of `trainer_spec.model_type`.
_UNIGRAM, _BPE = 1, 2
# Files of transformers that name the special tokens; the last one counts.
_CONFIGS = ("special_tokens_map.json", "tokenizer_config.json")
_OTHER_FILES = ("added_tokens.json", "chat_template.jinja")
_T5_EXTRA_IDS = 100


def load_model(path: pathlib.Path, directory: pathlib.Path | None) -> "PreTrainedTokenizerFast":
    """Loads a SentencePiece model.

    Without other files, T5's unigram models end texts with EOS, and models with a BOS token begin
    texts with it.

    Args:
      path: a `.model` file.
      directory: the model's directory, whose tokenizer_config.json, special_tokens_map.json,
        added_tokens.json and chat_template.jinja are read if they exist; None: the file alone.

    Raises:
      ValueError: the file is not a SentencePiece model, or its algorithm is not supported.
    """
    # Imported here because it takes a second and most of the package does not need it.
    import transformers
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    proto.ParseFromString(path.read_bytes())
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if not proto.pieces or trainer.model_type not in (_UNIGRAM, _BPE):
        raise ValueError("it is not a unigram or BPE model of SentencePiece.")
    config = _read_config(directory)
    added = _added_tokens(config)
    tokens, types = [p.piece for p in proto.pieces], [p.type for p in proto.pieces]
    if "" in tokens or len(set(tokens)) < len(tokens):
        raise ValueError("it has a piece twice, or an empty one.")
    for place, token in added.items():
        if place < len(tokens) and token.content != tokens[place]:  # A renamed piece.
            tokens[place], types[place] = token.content, CONTROL if token.special else USER_DEFINED
    named = {
        f"{name}_token": tokens[place]
        for name in ("bos", "eos", "unk", "pad")
        if 0 <= (place := getattr(trainer, f"{name}_id")) < len(tokens)
    }
    pieces = Pieces(
        tokens,
        types,
        [piece.score for piece in proto.pieces],
        unigram=trainer.model_type == _UNIGRAM,
        unknown=named.get("unk_token"),
        characters=normalizer.precompiled_charsmap,
        strip=normalizer.remove_extra_whitespaces,
        prefix=normalizer.add_dummy_prefix and config.get("add_prefix_space") is not False,
        prefix_once=config.get("legacy") is False,
    )
    backend = build(pieces)
    begins = "bos_token" in named
    _add_tokens(backend, added, 0 if begins or not pieces.unigram else _extra_ids(config))
    settings: dict[str, Any] = {"add_bos_token": begins, "add_eos_token": not begins} | named
    settings |= {"clean_up_tokenization_spaces": False} | {
        key: value
        for key, value in config.items()
        if key.endswith("_token") or key == "clean_up_tokenization_spaces"
    }
    if directory is None or not any((directory / n).is_file() for n in (*_CONFIGS, *_OTHER_FILES)):
        return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
    # The backend has the added tokens already, to be found in texts as they are before
    # normalization. Without an empty `vocab_file` the model would be converted again.
    return transformers.PreTrainedTokenizerFast.from_pretrained(
        str(directory),
        tokenizer_object=backend,
        added_tokens_decoder={},
        vocab_file="",
        **settings,
    )


def _read_config(directory: pathlib.Path | None) -> dict[str, Any]:
    """Returns the settings in transformers' files, with named tokens as text."""
    config: dict[str, Any] = {}
    for name in _CONFIGS:
        if directory is not None and (file := directory / name).is_file():
            config |= tokenizer_files.read(file)
    for key, value in config.items():
        if key.endswith("_token") and isinstance(value, dict):
            config[key] = value["content"]
    older = None if directory is None else directory / "added_tokens.json"
    if "added_tokens_decoder" not in config and older is not None and older.is_file():
        ids = tokenizer_files.read(older)
        special = [*(config.get("additional_special_tokens") or ()), *config.values()]
        config["added_tokens_decoder"] = {
            place: {"content": token, "special": token in special} for token, place in ids.items()
        }
    return config


def _added_tokens(config: Mapping[str, Any]) -> dict[int, "AddedToken"]:
    """Returns the tokens that are added to the model, or renamed in it, by id."""
    from tokenizers import AddedToken

    return {
        int(place): AddedToken(**(token | {"normalized": False}))
        for place, token in (config.get("added_tokens_decoder") or {}).items()
    }


def _extra_ids(config: Mapping[str, Any]) -> int:
    """Returns the number of T5's sentinel tokens, which only the embeddings count."""
    is_t5 = str(config.get("tokenizer_class", "T5")).startswith(("T5", "MT5"))
    return int(config.get("extra_ids", _T5_EXTRA_IDS)) if is_t5 else 0


def _add_tokens(backend: Any, added: Mapping[int, "AddedToken"], extra_ids: int) -> None:
    from tokenizers import AddedToken

    backend.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(extra_ids))])
    for place in range(backend.get_vocab_size(), max(added, default=-1) + 1):
        # Fill gaps, since the backend numbers added tokens consecutively.
        backend.add_tokens([added.get(place) or AddedToken(f"<unused_{place}>", special=True)])
