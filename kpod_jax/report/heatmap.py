"""Token weights of the words in a rationale.

Letters: n tokens of a rationale.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kpod_jax.data.ground_truth import spans_overlap
from kpod_jax.data.records import Record

# Numbers keep their separators and words their apostrophes; any other sign is a separate word.
_WORD = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:['’]\w+)*|[^\w\s]")


class Word(NamedTuple):
    """A word `text[start:end]` of the rationale, its mean weight and its tokens' weights."""

    start: int
    end: int
    weight: float
    pieces: tuple[float, ...]


def words(text: str, spans: npt.ArrayLike, weights: npt.ArrayLike) -> list[Word]:
    """Merges tokens into words, numbers and punctuation marks.

    A token counts for every word that it overlaps; words without tokens are left out.

    Args:
      text: the rationale.
      spans: [n, 2] integers, the characters (start, end) of each token, in text order.
      weights: [n] float, w_j.

    Returns:
      The words in text order.
    """
    spans_nx2 = np.asarray(spans, np.int64).reshape(-1, 2)
    weights_n = np.asarray(weights, np.float64)
    if len(spans_nx2) != len(weights_n):
        raise ValueError(
            f"Expected a span and a weight for each token, got {len(spans_nx2)} spans and "
            f"{len(weights_n)} weights."
        )
    is_visible = spans_nx2[:, 1] > spans_nx2[:, 0]  # Whitespace tokens have no characters.
    starts, ends = spans_nx2[is_visible].T
    values: list[float] = weights_n[is_visible].tolist()
    word_spans = [match.span() for match in _WORD.finditer(text)]
    bounds = np.asarray(word_spans, np.int64).reshape(-1, 2)
    first = np.searchsorted(ends, bounds[:, 0], side="right").tolist()
    last = np.searchsorted(starts, bounds[:, 1], side="left").tolist()
    return [
        Word(start, end, sum(values[a:b]) / (b - a), tuple(values[a:b]))
        for (start, end), a, b in zip(word_spans, first, last, strict=True)
        if b > a
    ]


class Piece(NamedTuple):
    """A piece of text: a word, possibly a known keypoint, or the characters between two words."""

    text: str
    word: Word | None = None
    is_key: bool = False


def pieces(
    text: str,
    spans: npt.ArrayLike,
    weights: npt.ArrayLike,
    keypoints: Sequence[Sequence[int]] = (),
) -> list[Piece]:
    """Splits a text into words and the characters between them; joined, they restore the text.

    Args:
      text: the rationale, or a part of it.
      spans: [n, 2] integers, the characters of each token in `text`, in order.
      weights: [n] float in (0, 1), w_j.
      keypoints: character spans of known keypoints.
    """
    text_words = words(text, spans, weights)
    are_keys = spans_overlap([word[:2] for word in text_words], keypoints)
    result, at = [], 0
    for word, overlaps in zip(text_words, are_keys, strict=True):
        result.append(Piece(text[at : word.start]))
        result.append(Piece(text[word.start : word.end], word, bool(overlaps.any())))
        at = word.end
    return [*result, Piece(text[at:])]


def steps(record: Record, spans: np.ndarray, weights: np.ndarray) -> list[list[Piece]]:
    """Returns the pieces of each step of a rationale; `spans` and `weights` as in `words`."""
    result, start = [], 0
    for step in record.steps:
        end = start + len(step)
        inside = (spans[:, 1] > start) & (spans[:, 0] < end)
        shifted = np.clip(spans[inside], start, end) - start
        keys = [(max(a - start, 0), b - start) for a, b in record.keypoints or () if b > start]
        result.append(pieces(step.rstrip(), shifted, weights[inside], keys))
        start = end
    return result
