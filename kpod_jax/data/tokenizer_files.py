"""Checks the files of a tokenizer that others wrote, before libraries read them."""

import pathlib
from typing import Any

from kpod_jax.utils import schema
from kpod_jax.utils.errors import UserError

# The largest vocabularies, of 262144 tokens, take 35 MB.
_MAX_BYTES = 256 << 20
_MAX_ID = (1 << 24) - 1
_MAX_EXTRA_IDS = 1 << 14
_MAX_TEMPLATE = 1 << 20
_MAX_TOKEN = 4096
_ID = schema.integer(0, _MAX_ID)


def _is_token(value: Any) -> bool:
    text = value.get("content") if isinstance(value, dict) else value
    return isinstance(text, str) and len(text) <= _MAX_TOKEN


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 9 and int(text) <= _MAX_ID


def _is_template(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEMPLATE


_TOKEN = schema.Kind(f"a token of {_MAX_TOKEN} characters at most", _is_token)
_TEMPLATES = schema.list_of(
    schema.Kind(
        "a template",
        lambda value: (
            isinstance(value, dict)
            and isinstance(value.get("name"), str)
            and _is_template(value.get("template"))
        ),
    ),
    "named templates",
)
_FLAG = schema.either(schema.BOOLEAN, schema.NULL)
_SETTINGS = {
    **{
        f"{name}_token": schema.either(_TOKEN, schema.NULL)
        for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
    },
    **{
        name: schema.either(schema.list_of(_TOKEN, "tokens"), schema.OBJECT, schema.NULL)
        for name in ("additional_special_tokens", "extra_special_tokens")
    },
    **dict.fromkeys(("add_bos_token", "add_eos_token", "add_prefix_space", "legacy"), _FLAG),
    "added_tokens_decoder": schema.either(
        schema.Kind(
            "an object of tokens by id",
            lambda value: (
                isinstance(value, dict)
                and all(map(_is_id, value))
                and all(isinstance(token, dict) and _is_token(token) for token in value.values())
            ),
        ),
        schema.NULL,
    ),
    "auto_map": schema.either(schema.OBJECT, schema.LIST, schema.NULL),
    "chat_template": schema.either(
        schema.Kind(f"text of {_MAX_TEMPLATE} characters at most", _is_template),
        _TEMPLATES,
        schema.NULL,
    ),
    "clean_up_tokenization_spaces": _FLAG,
    "extra_ids": schema.either(schema.integer(0, _MAX_EXTRA_IDS), schema.NULL),
    "model_max_length": schema.either(schema.NUMBER, schema.NULL),
    "tokenizer_class": schema.either(schema.TEXT, schema.NULL),
}
_JSON = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_ADDED = "added_tokens.json"
_OTHERS = ("tokenizer.json", "vocab.json", "merges.txt", "*.model", "chat_template.*")


def read(path: pathlib.Path) -> dict[str, Any]:
    """Reads one of the files of settings.

    Raises:
      UserError: it is damaged, or a value is of another kind.
    """
    if path.name != _ADDED:
        return schema.read_object(path, _SETTINGS)
    ids = schema.read_object(path)
    schema.check(ids, dict.fromkeys(ids, _ID), path)
    return ids


def check(directory: pathlib.Path) -> None:
    """Checks the files of a directory that tokenizers are loaded from.

    Raises:
      UserError: one is damaged or too large.
    """
    for name in _JSON:
        if (path := directory / name).is_file():
            read(path)
    for pattern in _OTHERS:
        for path in directory.glob(pattern):
            check_size(path)


def check_size(path: pathlib.Path) -> None:
    """Checks that a file is no larger than one of a tokenizer can be.

    Raises:
      UserError: it is.
    """
    limit = _MAX_TEMPLATE if path.name.startswith("chat_template.") else _MAX_BYTES
    if path.is_file() and (size := path.stat().st_size) > limit:
        raise UserError(f"Cannot read {path}: {size} bytes; expected {limit} at most.")
