"""A rationale's weights in a terminal: words on the colours of the heat map, or with figures.

Text of a data set or a model may hold control characters that a terminal would obey; none gets
there.
"""

import numpy as np

from kpod_jax.data.records import Record
from kpod_jax.report import heatmap
from kpod_jax.report.colours import heat

_END = "\x1b[0m"


def heat_map(record: Record, spans: np.ndarray, weights: np.ndarray, *, colours: bool) -> str:
    """Question, coloured rationale, answer and scale of one record.

    Args:
      record: the example.
      spans: [n, 2] integers, the characters of its rationale's tokens.
      weights: [n] float in (0, 1), w_j.
      colours: by 24-bit ANSI sequences; without them a word's weight follows it in tenths, as in
        "twice:8".

    Returns:
      Lines, without a line's end at the last.
    """
    text, parts, at = record.rationale, [], 0
    for word in heatmap.words(text, spans, weights):
        parts.append(_printable(text[at : word.start]))
        shown = _printable(text[word.start : word.end])
        tenths = min(9, int(word.weight * 10))
        parts.append(_painted(shown, word.weight) if colours else f"{shown}:{tenths}")
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
    """A colour "#rrggbb" as ANSI has it, "r;g;b"."""
    return ";".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
