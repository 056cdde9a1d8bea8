"""The palette and heat-map scale shared by pages, figures, pictures and terminals.

The scale is piecewise linear in OKLab with even spacing, so equal differences in weight look
equally large. Its lightness only falls (light pages) or only rises (dark pages), so it stays
readable for color-blind readers and in black and white.
"""

import numpy as np

# Name of the CSS variable: (color on light pages and in files, color on dark screens).
PALETTE = {
    "ink": ("#1f2328", "#e6e4df"),
    "muted": ("#646c75", "#a3a5a8"),
    "rule": ("#dcdad5", "#3b3d42"),
    "page": ("#fffefb", "#191a1d"),
    "series-0": ("#c2410c", "#fb9a4b"),
    "series-1": ("#2a66a6", "#72b2f2"),
    "series-2": ("#7c8189", "#91979f"),
    "series-3": ("#0f7f76", "#3fcdbd"),
    "series-4": ("#8147b5", "#c39bf3"),
    "series-5": ("#94701a", "#dfb54a"),
    "series-6": ("#b02a6b", "#f28cb8"),
    "series-7": ("#5b7a1e", "#b2cf5f"),
    "right": ("#1a7040", "#6bcf8e"),
    "wrong": ("#b3261e", "#ff9a8f"),
}
SERIES = [light for name, (light, _) in PALETTE.items() if name.startswith("series")]
INK, MUTED, RULE, PAGE = (PALETTE[name][0] for name in ("ink", "muted", "rule", "page"))

LEVELS = 33  # Number of colors of the scale on a page.
# Points of the scale in OKLab (lightness, green to red, blue to yellow), from weight 0 to 1.
_LIGHT = ((0.985, 0.002, 0.006), (0.87, 0.025, 0.125), (0.64, 0.15, 0.115))
_DARK = ((0.27, 0.002, -0.010), (0.50, 0.090, 0.070), (0.84, 0.030, 0.155))


def level(weight: float) -> int:
    """Returns the level of the color scale, 0 ... LEVELS - 1, for a weight in [0, 1]."""
    return round(min(max(weight, 0.0), 1.0) * (LEVELS - 1))


def heat(weight: float, *, dark: bool = False) -> tuple[str, str]:
    """Returns the background and text colors, "#rrggbb", for a weight in [0, 1]."""
    points = np.asarray(_DARK if dark else _LIGHT)
    distance = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = min(max(weight, 0.0), 1.0) * distance[-1]
    red, green, blue = _to_linear_rgb(*(np.interp(at, distance, axis) for axis in points.T))
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # Black or white, whichever has more contrast by WCAG's (L1 + 0.05) / (L2 + 0.05).
    text = "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"
    return "#" + "".join(f"{round(255 * _gamma(v)):02x}" for v in (red, green, blue)), text


def _to_linear_rgb(lightness: float, a: float, b: float) -> tuple[float, float, float]:
    """Converts OKLab to linear sRGB in [0, 1], by Björn Ottosson's definition of the space."""
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short
    return min(max(red, 0.0), 1.0), min(max(green, 0.0), 1.0), min(max(blue, 0.0), 1.0)


def _gamma(linear: float) -> float:
    """Applies sRGB's transfer curve to linear light."""
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055
