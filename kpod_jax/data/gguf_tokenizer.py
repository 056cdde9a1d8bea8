"""Tokenizers built from the metadata of GGUF files.

A GGUF file gives the algorithm (`tokenizer.ggml.model`), the tokens with their types and scores,
the merges, and, for byte-level BPE, the name of the pre-tokenizer (`tokenizer.ggml.pre`).
Everything else follows the original tokenizer of that name.
"""

import pathlib
from typing import TYPE_CHECKING, Any

from kpod_jax.data.sentencepiece_tokenizer import NORMAL, Pieces, add_special, build
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.gguf_contents import GGUFContents, read_gguf

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

# Ids of special tokens that a file does not give.
_DEFAULT_IDS = {
    "gpt2": {},
    "llama": {"unknown": 0, "bos": 1, "eos": 2},
    "t5": {"padding": 0, "eos": 1, "unknown": 2},
}
# Names of pre-tokenizers, with the implementation each refers to.
_PRE_TOKENIZERS = {
    "default": "gpt-2",
    "gpt-2": "gpt-2",
    "smollm": "smollm",
    "qwen2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
    "llama-bpe": "llama-bpe",
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "dbrx": "dbrx",  # OLMo 2.
    "gpt-4o": "gpt-4o",  # Phi-4-mini.
}
# Word pattern of Qwen2, LLaMA 3 and OLMo 2, which differ in how many digits form a word.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
# GPT-4o's, where a word also ends before an upper-case letter.
_CASED_WORDS = "|".join(
    [
        *(
            rf"[^\r\n\p{{L}}\p{{N}}]?{part}(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
            for part in (rf"[{_UPPER}]*[{_LOWER}]+", rf"[{_UPPER}]+[{_LOWER}]*")
        ),
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)


def gguf_tokenizer(path: pathlib.Path) -> "PreTrainedTokenizerFast":
    """Returns the tokenizer of a GGUF file, with its special tokens and chat template.

    Raises:
      UserError: the file is damaged, or its kind of tokenizer is not supported.
    """
    # Imported here because it takes a second and most of the package does not need it.
    import transformers

    file = read_gguf(path)
    kind, tokens = file.field("tokenizer.ggml.model"), file.field("tokenizer.ggml.tokens")
    if kind not in _DEFAULT_IDS:
        raise UserError(
            f"{path} has an unsupported tokenizer {kind!r} (tokenizer.ggml.model); expected one of "
            f"{', '.join(_DEFAULT_IDS)}. Set student.tokenizer to the model's Hugging Face "
            "directory instead."
        )
    named = {}
    for name in ("bos", "eos", "unknown", "padding"):
        key = f"tokenizer.ggml.{name}_token_id"
        place = file.fields.get(key, _DEFAULT_IDS[kind].get(name))
        # Some files store the largest integer for a missing token.
        named[name] = None if place is None or place >= len(tokens) else tokens[place]
    if kind == "gpt2":
        tokenizer = _byte_level(file, tokens)
        add_special(tokenizer, tokens, _types(file, tokens))
    else:
        tokenizer = _sentencepiece(file, tokens, named["unknown"])
    # The default, for files that do not say.
    adds_bos = kind == "llama" or _PRE_TOKENIZERS.get(_pre_tokenizer(file)) == "llama-bpe"
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=named["bos"],
        eos_token=named["eos"],
        unk_token=named["unknown"],
        pad_token=named["padding"],
        add_bos_token=file.fields.get("tokenizer.ggml.add_bos_token", adds_bos),
        add_eos_token=file.fields.get("tokenizer.ggml.add_eos_token", kind == "t5"),
        chat_template=file.fields.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
    )


def _types(file: GGUFContents, tokens: list[str]) -> list[int]:
    return file.fields.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))


def _pre_tokenizer(file: GGUFContents) -> str:
    return file.fields.get("tokenizer.ggml.pre", "default")


def _merges(file: GGUFContents) -> list[tuple[str, str]]:
    pairs = (merge.split(" ", 1) for merge in file.field("tokenizer.ggml.merges"))
    return [(left, right) for left, right in pairs]


def _byte_level(file: GGUFContents, tokens: list[str]) -> "Tokenizer":
    """Builds byte-level BPE, in which each byte is written as a visible character."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    name = _pre_tokenizer(file)
    if name not in _PRE_TOKENIZERS:
        raise UserError(
            f"{file.path} has an unsupported pre-tokenizer {name!r} (tokenizer.ggml.pre); expected "
            f"one of {', '.join(_PRE_TOKENIZERS)}. Set student.tokenizer to the model's Hugging "
            "Face directory instead."
        )
    split = _PRE_TOKENIZERS[name]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    # LLaMA 3 keeps a word that is a token whole, even if no merges produce it.
    model = models.BPE(vocabulary, _merges(file), ignore_merges=split == "llama-bpe")
    result = tokenizers.Tokenizer(model)
    if split == "qwen2":
        result.normalizer = normalizers.NFC()
    if split in ("qwen2", "llama-bpe", "dbrx", "gpt-4o"):
        words = _WORDS % (r"\p{N}" if split == "qwen2" else r"\p{N}{1,3}")
        words = _CASED_WORDS if split == "gpt-4o" else words
        steps: list[Any] = [
            pre_tokenizers.Split(tokenizers.Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    else:
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
        if split == "smollm":
            steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    result.pre_tokenizer = pre_tokenizers.Sequence(steps)
    result.decoder = decoders.ByteLevel()
    return result


def _sentencepiece(file: GGUFContents, tokens: list[str], unknown: str | None) -> "Tokenizer":
    """Builds a unigram model ("t5"), or BPE, whose merges the scores may give ("llama")."""
    fields = file.fields
    unigram, has_merges = fields["tokenizer.ggml.model"] == "t5", "tokenizer.ggml.merges" in fields
    needs_scores = unigram or not has_merges
    characters = fields.get("tokenizer.ggml.precompiled_charsmap") or ()
    return build(
        Pieces(
            tokens,
            _types(file, tokens),
            file.field("tokenizer.ggml.scores") if needs_scores else [0.0] * len(tokens),
            unigram=unigram,
            unknown=unknown,
            merges=_merges(file) if has_merges and not unigram else None,
            characters=bytes(value % 256 for value in characters),
            strip=bool(fields.get("tokenizer.ggml.remove_extra_whitespaces")),
            prefix=fields.get("tokenizer.ggml.add_space_prefix", True),
        )
    )
