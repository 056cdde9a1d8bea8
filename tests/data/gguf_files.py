"""GGUF files of small tokenizers, written as llama.cpp's converters write them."""

import io
import json
from typing import Any

import gguf
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, trainers

CORPUS = [
    "Tom has 3 pens and buys 14 more. How many pens does he have? 3 + 14 = 17 pens.",
    "A box holds 12 eggs; Anna's got 5 boxes, so she's 5 * 12 = 60 eggs and can't eat them.",
    "for i in range(1000):\n    total += values[i]\n\treturn total / 2500  # don't\n\n\nDONE",
    "In 2024 they'd paid $1,234.50 (about €1.100) – größer als 10 %, naïve café, 1 1 22 333 4444.",
    "数学の問題です。 Это задача. 😀 🎉 the the the pens pens boxes boxes eggs many many",
]
# The corpus, and texts that are unlike it.
PLAIN = [
    *CORPUS,
    "",
    "x",
    "1234567890 and 98765",
    "It's WE'LL I'M they'Re o'clock",
    "tabs\tand\r\nlines\n\n\n  indented\n    more",
    "trailing  \n",
    "a     b",
    "👍🏽👩‍👩‍👧 ﷽ 𝔘𝔫𝔦",
    "non\u00a0breaking\u200bzero",
    "<|im_start|>user\nHow many?<|im_end|>\n<think>3</think>",
]
# transformers' reader of GGUF files has other ids for some of these than the tokenizers have that
# the files are made of.
ODD = ["cafe\u0301 n\u0303", "  12 and   7", "\n\n  345", " lead", "   three", "= ١٢٣ ½ ²"]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<think>", "</think>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train(pre_tokenizer: Any, normalizer: Any = None) -> tokenizers.Tokenizer:
    """A byte-level BPE of the corpus."""
    result = tokenizers.Tokenizer(models.BPE())
    result.pre_tokenizer = pre_tokenizer
    result.decoder = decoders.ByteLevel()
    if normalizer is not None:
        result.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=CONTROL,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    result.train_from_iterator(CORPUS, trainer)
    added = [tokenizers.AddedToken(text, normalized=False) for text in USER_DEFINED]
    result.add_tokens(added)
    return result


def add_byte_level(writer: gguf.GGUFWriter, tokenizer: tokenizers.Tokenizer, pre: str) -> None:
    """Writes a byte-level BPE's metadata."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [tokenizer.id_to_token(i) or "" for i in range(tokenizer.get_vocab_size())]
    kind = dict.fromkeys(CONTROL, gguf.TokenType.CONTROL)
    kind |= dict.fromkeys(USER_DEFINED, gguf.TokenType.USER_DEFINED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([kind.get(token, gguf.TokenType.NORMAL) for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)


def sentencepiece_model(kind: str, **options: Any) -> bytes:
    """A SentencePiece model of the corpus: "bpe" or "unigram"."""
    stream = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(line for text in CORPUS for line in text.split("\n")),
        model_writer=stream,
        model_type=kind,
        minloglevel=2,
        **options,
    )
    return stream.getvalue()


def add_sentencepiece(writer: gguf.GGUFWriter, model: bytes, kind: str) -> None:
    """Writes a SentencePiece model's metadata; `kind` is "llama" or "t5"."""
    proto: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    proto.ParseFromString(model)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.piece for piece in proto.pieces])
    writer.add_token_scores([piece.score for piece in proto.pieces])
    writer.add_token_types([piece.type for piece in proto.pieces])
    rules = proto.normalizer_spec
    writer.add_add_space_prefix(rules.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(rules.remove_extra_whitespaces)
    if rules.precompiled_charsmap:
        writer.add_precompiled_charsmap(rules.precompiled_charsmap)
    places = proto.trainer_spec
    writer.add_unk_token_id(places.unk_id)
    writer.add_eos_token_id(places.eos_id)
    if places.bos_id >= 0:
        writer.add_bos_token_id(places.bos_id)
    if places.pad_id >= 0:
        writer.add_pad_token_id(places.pad_id)


def finish(writer: gguf.GGUFWriter) -> None:
    """Writes the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
