"""Token weights of the words in a rationale.

Letters: n tokens of a rationale.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kpod_jax.data.ground_truth import shared
from kpod_jax.data.records import Record

# Numbers keep their separators; a word keeps its apostrophe; any other sign stands alone.
_WORD = re.compile(r"\d+(?:[.,]\d+)+|\w+(?:['’]\w+)*|[^\w\s]")


class Word(NamedTuple):
    """A word of the rationale: `text[start:end]`, its mean weight and its word pieces' weights."""

    start: int
    end: int
    weight: float
    pieces: tuple[float, ...]


def words(text: str, spans: npt.ArrayLike, weights: npt.ArrayLike) -> list[Word]:
    """Merges word pieces into words, numbers and punctuation marks.

    A token counts for every word that it shares a character with; a word without one is left out.

    Args:
      text: the rationale.
      spans: [n, 2] integers, the characters (start, end) of each token, in the order of the text.
      weights: [n] float, w_j.

    Returns:
      The words in the order of the text.
    """
    spans_nx2 = np.asarray(spans, np.int64).reshape(-1, 2)
    weights_n = np.asarray(weights, np.float64)
    if len(spans_nx2) != len(weights_n):
        raise ValueError(f"{len(spans_nx2)} spans and {len(weights_n)} weights of the same tokens")
    there = spans_nx2[:, 1] > spans_nx2[:, 0]  # A token of white space alone has no characters.
    starts, ends = spans_nx2[there].T
    values: list[float] = weights_n[there].tolist()
    found = [match.span() for match in _WORD.finditer(text)]
    bounds = np.asarray(found, np.int64).reshape(-1, 2)
    first = np.searchsorted(ends, bounds[:, 0], side="right").tolist()
    last = np.searchsorted(starts, bounds[:, 1], side="left").tolist()
    return [
        Word(start, end, sum(values[a:b]) / (b - a), tuple(values[a:b]))
        for (start, end), a, b in zip(found, first, last, strict=True)
        if b > a
    ]


class Piece(NamedTuple):
    """Part of a text: a word, perhaps a known keypoint, or the characters between two words."""

    text: str
    word: Word | None = None
    is_key: bool = False


def pieces(
    text: str,
    spans: npt.ArrayLike,
    weights: npt.ArrayLike,
    keypoints: Sequence[Sequence[int]] = (),
) -> list[Piece]:
    """Splits a text into words and the characters between them. Joined, they give the text back.

    Args:
      text: the rationale, or a part of it.
      spans: [n, 2] integers, the characters of `text` of each token, in order.
      weights: [n] float in (0, 1), w_j.
      keypoints: spans of the characters of known keypoints.
    """
    found = words(text, spans, weights)
    are_keys = shared([word[:2] for word in found], keypoints)
    made, at = [], 0
    for word, inside in zip(found, are_keys, strict=True):
        made.append(Piece(text[at : word.start]))
        made.append(Piece(text[word.start : word.end], word, bool(inside.any())))
        at = word.end
    return [*made, Piece(text[at:])]


def steps(record: Record, spans: np.ndarray, weights: np.ndarray) -> list[list[Piece]]:
    """The pieces of each step of a rationale, for `spans` and `weights` as in `words`."""
    made, start = [], 0
    for step in record.steps:
        end = start + len(step)
        inside = (spans[:, 1] > start) & (spans[:, 0] < end)
        shifted = np.clip(spans[inside], start, end) - start
        keys = [(max(a - start, 0), b - start) for a, b in record.keypoints or () if b > start]
        made.append(pieces(step.rstrip(), shifted, weights[inside], keys))
        start = end
    return made
