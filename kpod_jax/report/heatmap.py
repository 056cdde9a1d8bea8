"""Token weights over the words of a rationale: the colour scale, the words and their HTML.

Colours lie on straight lines in OKLab at equal distances, so that equal differences of weight look
equally large, and their lightness only falls (light pages) or rises (dark pages), so that the scale
survives colour blindness and a black and white printer.

Letters: n tokens of a rationale.
"""

import html
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kpod_jax.data.known import shared

LEVELS = 33

# Points of the scale in OKLab (lightness, green to red, blue to yellow), from weight 0 to weight 1.
_LIGHT = ((0.985, 0.002, 0.006), (0.87, 0.025, 0.125), (0.64, 0.15, 0.115))
_DARK = ((0.27, 0.002, -0.010), (0.50, 0.090, 0.070), (0.84, 0.030, 0.155))

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


def heat_map_html(
    text: str,
    spans: npt.ArrayLike,
    weights: npt.ArrayLike,
    keypoints: Sequence[Sequence[int]] | None = None,
) -> str:
    """The text with every word coloured by its weight, for a page that holds `css()`.

    Args:
      text: the rationale, or a part of it; escaped here.
      spans: [n, 2] integers, the characters of `text` of each token, in order.
      weights: [n] float in (0, 1), w_j.
      keypoints: spans of characters to underline, where they are known.

    Returns:
      An HTML fragment. A word's tooltip has its weight, and those of its pieces if it has several.
    """
    pieces, at = [], 0
    found = words(text, spans, weights)
    known = () if keypoints is None else keypoints
    keys = shared([word[:2] for word in found], known)
    for word, inside in zip(found, keys, strict=True):
        pieces.append(html.escape(text[at : word.start]))
        mark = " key" if inside.any() else ""
        title = f"weight {word.weight:.2f}"
        if len(word.pieces) > 1:
            title += " = mean of " + ", ".join(f"{piece:.2f}" for piece in word.pieces)
        pieces.append(
            f'<span class="h{level(word.weight)}{mark}" title="{title}">'
            f"{html.escape(text[word.start : word.end])}</span>"
        )
        at = word.end
    return f'<span class="heat">{"".join(pieces)}{html.escape(text[at:])}</span>'


def legend_html(keypoints: bool = False) -> str:
    """The colour scale from 0 to 1, and the underline where keypoints are marked."""
    cells = "".join(f'<i class="h{i}"></i>' for i in range(LEVELS))
    mark = '<span class="heat"><span class="key">known keypoint</span></span>' if keypoints else ""
    return (
        f'<p class="legend"><span>weight 0 <span class="muted">(masked)</span></span>'
        f'<span class="scale" role="img" aria-label="colour scale from 0 to 1">{cells}</span>'
        f'<span>1 <span class="muted">(kept)</span></span>{mark}</p>'
    )


def css() -> str:
    """The rules of the classes used here; the dark scale is for dark screens, never for print."""
    light = "".join(_rule(i, *colour(i / (LEVELS - 1))) for i in range(LEVELS))
    dark = "".join(_rule(i, *colour(i / (LEVELS - 1), dark=True)) for i in range(LEVELS))
    return f"""{light}
@media screen and (prefers-color-scheme: dark) {{ {dark} }}
.heat {{ white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; }}
.heat span {{ padding: .14em .09em .2em; margin: 0 -.09em; border-radius: .2em; }}
.heat .key {{ text-decoration: underline .1em; text-underline-offset: .14em; font-weight: 600; }}
.legend {{ display: flex; flex-wrap: wrap; align-items: center; gap: .3rem .7rem; }}
.scale {{ display: inline-flex; width: 11rem; height: .8rem; border-radius: .2rem; overflow: hidden;
  border: 1px solid var(--rule); }}
.scale i {{ flex: 1; }}
"""


def level(weight: float) -> int:
    """The step of the colour scale, 0 ... LEVELS - 1, of a weight in [0, 1]."""
    return round(min(max(weight, 0.0), 1.0) * (LEVELS - 1))


def colour(weight: float, *, dark: bool = False) -> tuple[str, str]:
    """The colours "#rrggbb" of the ground and of the text on it, for a weight in [0, 1]."""
    points = np.asarray(_DARK if dark else _LIGHT)
    distance = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = min(max(weight, 0.0), 1.0) * distance[-1]
    red, green, blue = _to_linear_rgb(*(np.interp(at, distance, axis) for axis in points.T))
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # Of black and white, the one with the larger contrast by WCAG's (L1 + 0.05) / (L2 + 0.05).
    text = "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"
    return "#" + "".join(f"{round(255 * _gamma(v)):02x}" for v in (red, green, blue)), text


def _rule(index: int, ground: str, text: str) -> str:
    return f".h{index}{{background:{ground};color:{text}}}"


def _to_linear_rgb(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    """OKLab to linear sRGB in [0, 1], after Björn Ottosson's definition of the space."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short
    return min(max(red, 0.0), 1.0), min(max(green, 0.0), 1.0), min(max(blue, 0.0), 1.0)


def _gamma(linear: float) -> float:
    """Linear light to sRGB's transfer curve."""
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
