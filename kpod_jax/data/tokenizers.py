"""Loading of tokenizers in any supported file format."""

import os
from typing import TYPE_CHECKING

from kpod_jax.data import tokenizer_files
from kpod_jax.data.gguf_tokenizer import gguf_tokenizer
from kpod_jax.data.sentencepiece_model import load_model
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Usual names of these tokens, for tokenizers that do not declare them.
_EOS_NAMES = ("</s>", "<eos>", "<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "[EOS]", "[SEP]")
_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>")


def load_tokenizer(name: str) -> "PreTrainedTokenizerFast":
    """Loads a fast tokenizer with an EOS token and a padding token.

    If the tokenizer declares no padding token, `<pad>` or a similar token of its vocabulary is
    used, else EOS: padding is always masked, and the vocabulary stays unchanged.

    Args:
      name: a directory with `tokenizer.json` or a SentencePiece model, either of these files, a
        GGUF file, or a model id on the Hugging Face Hub (a cached copy is preferred).

    Raises:
      UserError: no tokenizer can be loaded from `name`, or it has no EOS token.
    """
    try:
        tokenizer = _load(name)
        tokenizer("a 1")  # Damage may show only here.
        if not tokenizer("a 1", add_special_tokens=False).input_ids:
            raise ValueError("it turns text into no tokens.")
    except UserError:
        raise
    except BaseException as error:  # tokenizers raises bare Exceptions for damaged files.
        # A panic of Rust is none.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = one_line(error)
        raise UserError(
            f"Cannot load a tokenizer from {name!r}: {reason:.300} Expected a directory with "
            "tokenizer.json, a SentencePiece .model file, or a Hugging Face id, which requires "
            "network access or a cached copy."
        ) from error
    vocabulary = tokenizer.get_vocab()
    if tokenizer.eos_token is None:
        tokenizer.eos_token = next((t for t in _EOS_NAMES if t in vocabulary), None)
    if tokenizer.eos_token is None:
        raise UserError(
            f"The tokenizer {name!r} has no end-of-sequence token, so generation could never stop. "
            'Set "eos_token" in its tokenizer_config.json.'
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = next((t for t in _PAD_NAMES if t in vocabulary), tokenizer.eos_token)
    return tokenizer


def _load(name: str) -> "PreTrainedTokenizerFast":
    # Imported here because it takes a second and most of the package does not need it.
    import transformers

    path = files.local(name)
    directory = path if path.is_dir() else None
    if directory:
        tokenizer_files.check(directory)
    if directory and not (path / "tokenizer.json").is_file():
        path = next(iter(sorted(path.glob("*.model"))), path)
    if path.is_file() and path.suffix in (".json", ".model"):
        tokenizer_files.check_size(path)
    if path.is_file() and path.suffix == ".json":
        return transformers.PreTrainedTokenizerFast(tokenizer_file=str(path))
    if path.is_file() and path.suffix == ".model":
        return load_model(path, directory)
    if path.is_file() and path.suffix == ".gguf":
        return gguf_tokenizer(path)  # The reader in transformers needs torch.
    if path.is_dir():
        # Without this, transformers asks whether to run code of the directory.
        return transformers.AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    if path.is_file():
        raise ValueError("it is a file, but not .json, .model or .gguf.")
    if path.is_absolute() or name.startswith((".", "~")) or path.suffix in (".model", ".json"):
        raise OSError("no such file or directory.")
    try:
        return transformers.AutoTokenizer.from_pretrained(
            name, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError):
        if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
            raise
        return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
