"""Tokenizers built from SentencePiece pieces, which give the ids of SentencePiece itself.

The pieces come from a `.model` file (`sentencepiece_model.py`) or the metadata of a GGUF file.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Types of pieces; 5 is an unused piece.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
_SPACE = "▁"
_MAX_PIECE = 1024
# Between a character and one that belongs to it, such as an accent.
_EXTENDING = r"(?<=[\s\S])(?=[\p{M}\u200C\u200D\uFF9E\uFF9F])"


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A SentencePiece model.

    Attributes:
      tokens: V pieces, by id.
      types: V types, such as NORMAL.
      scores: V scores; higher ones merge first.
      unigram: whether the algorithm is unigram; else BPE.
      unknown: the piece for unknown characters, or None.
      merges: BPE merges, best first; None: derived from the scores.
      characters: compiled map of characters to normalized ones; b"" maps none.
      strip: whether to remove leading, trailing and repeated spaces.
      prefix: whether to begin text with a space.
      prefix_once: whether text after a special token begins without that space.
    """

    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    unigram: bool
    unknown: str | None
    merges: Sequence[tuple[str, str]] | None = None
    characters: bytes = b""
    strip: bool = False
    prefix: bool = True
    prefix_once: bool = False

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.types) == len(self.scores):
            raise ValueError("its pieces, types and scores differ in number.")
        if not all(map(math.isfinite, self.scores)):
            raise ValueError("it has a score that is not finite (NaN or infinity).")
        if max(map(len, self.tokens), default=0) > _MAX_PIECE:
            raise ValueError(f"it has a piece that is too long; expected {_MAX_PIECE} characters.")
        if self.unigram and self.unknown is None:
            raise ValueError("it has no unknown piece (unk), which unigram models need.")
        # A map is the size of its trie, the trie of 4 bytes a node, and normalized characters.
        size = int.from_bytes(self.characters[:4], "little")
        if self.characters and (not 4 <= size <= len(self.characters) - 4 or size % 4):
            raise ValueError("its map of characters (precompiled_charsmap) is damaged.")


def build(pieces: Pieces) -> "Tokenizer":
    """Builds a tokenizer; special and user-defined pieces match whole."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    vocabulary = {token: i for i, token in enumerate(pieces.tokens)}
    has_bytes = BYTE in pieces.types
    if pieces.unigram:
        scored = list(zip(pieces.tokens, pieces.scores, strict=True))
        place = None if pieces.unknown is None else vocabulary[pieces.unknown]
        model = models.Unigram(scored, place, has_bytes)
    else:
        model = models.BPE(
            vocabulary,
            list(_derived_merges(pieces) if pieces.merges is None else pieces.merges),
            unk_token=pieces.unknown,
            fuse_unk=True,
            byte_fallback=has_bytes,
        )
    result = tokenizers.Tokenizer(model)
    steps: list[Any] = []
    if pieces.characters:
        # `Precompiled` maps the beginning of "①\u0301" and drops the rest. So accents are composed
        # with their letters, or separated by a control character if the map removes it.
        compiled = normalizers.Precompiled(pieces.characters)
        if compiled.normalize_str("a\x01") == "a":
            separate = normalizers.Replace(tokenizers.Regex(_EXTENDING), "\x01")
            steps += [normalizers.NFC(), separate]
        steps.append(compiled)
    if pieces.strip:
        steps += [
            normalizers.Replace(tokenizers.Regex(pattern), content)
            for pattern, content in (("^ +| +$", ""), (" {2,}", " "))
        ]
    if pieces.prefix and not pieces.prefix_once:
        steps.append(normalizers.Prepend(_SPACE))
    result.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    if pieces.prefix and pieces.prefix_once:
        result.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, "first", split=False)
    result.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if pieces.prefix else []),
        ]
    )
    add_special(result, pieces.tokens, pieces.types)
    return result


def add_special(tokenizer: "Tokenizer", tokens: Sequence[str], types: Sequence[int]) -> None:
    """Registers special and user-defined tokens, so that they match whole; ids stay the same."""
    from tokenizers import AddedToken

    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind != USER_DEFINED, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
    )


def _derived_merges(pieces: Pieces) -> list[tuple[str, str]]:
    """Returns every pair of pieces that form a piece, highest score first.

    SentencePiece merges pairs of equal score, such as runs of spaces, from left to right. Trying
    the longest of them first has the same effect.
    """
    normal = {t for t, kind in zip(pieces.tokens, pieces.types, strict=True) if kind == NORMAL}
    pairs = []
    for token, score in zip(pieces.tokens, pieces.scores, strict=True):
        if token in normal:
            for cut in range(len(token) - 1, 0, -1):
                left, right = token[:cut], token[cut:]
                if left in normal and right in normal:
                    pairs.append((-score, -len(token), left, right))
    pairs.sort(key=lambda pair: pair[:2])
    return [(left, right) for *_, left, right in pairs]
