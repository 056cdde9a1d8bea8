"""Heat maps for terminals: words with background colors or with their weights in digits.

Control characters in the text of data sets and models are escaped, so terminals do not obey them.
"""

import numpy as np

from kpod_jax.data.records import Record
from kpod_jax.report import heatmap
from kpod_jax.report.colours import heat
from kpod_jax.utils.printable import printable

_END = "\x1b[0m"


def heat_map(record: Record, spans: np.ndarray, weights: np.ndarray, *, colours: bool) -> str:
    """Formats a record's question, colored rationale, answer and scale.

    Args:
      record: the example.
      spans: [n, 2] integers, the characters of the rationale's tokens.
      weights: [n] float in (0, 1), w_j.
      colours: whether to use 24-bit ANSI colors; otherwise each word is followed by its weight in
        tenths, as in "twice:8".

    Returns:
      Lines without a final newline.
    """
    text, parts, at = record.rationale, [], 0
    for word in heatmap.words(text, spans, weights):
        parts.append(_printable(text[at : word.start]))
        word_text = _printable(text[word.start : word.end])
        tenths = min(9, int(word.weight * 10))
        parts.append(_painted(word_text, word.weight) if colours else f"{word_text}:{tenths}")
        at = word.end
    parts.append(_printable(text[at:]))
    scale = "".join(_painted(" ", i / 19) for i in range(20)) if colours else ":0 … :9"
    return "\n".join(
        [
            f"{_printable(record.id)}: {_printable(record.question)}",
            "".join(parts).rstrip(),
            f"Answer: {_printable(record.answer)}",
            f"weight 0 {scale} 1",
        ]
    )


def _painted(text: str, weight: float) -> str:
    ground, ink = (_channels(colour) for colour in heat(weight))
    return f"\x1b[48;2;{ground};38;2;{ink}m{text}{_END}"


def _channels(colour: str) -> str:
    """Converts a color "#rrggbb" to ANSI's "r;g;b"."""
    return ";".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))


def _printable(text: str) -> str:
    return printable(text, "\n")
