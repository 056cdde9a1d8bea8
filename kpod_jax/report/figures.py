"""The report's figures, drawn by matplotlib in one style and converted to SVG for a page.

No function here changes matplotlib's global state: figures are created without pyplot and styled in
a context. In the SVG, text stays text in the page's font, and the colors of `PALETTE` become the
page's CSS variables, so figures follow the page into dark mode.

Letters: N training records, T phases.
"""

import functools
import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from kpod_jax.report import summary
from kpod_jax.report.colours import INK, MUTED, PAGE, PALETTE, RULE, SERIES

LINES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)), (0, (3, 1, 1, 1)))

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelsize": 9.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
_SIZE = (4.3, 2.9)  # Inches: 310 × 209 SVG units, the width of a third of a page or of a phone.

_P = ParamSpec("_P")


class Curve(NamedTuple):
    """A line of `curves`: label (None: no legend), method number, and x, y and band, [m] each."""

    label: str | None
    method: int
    x: np.ndarray
    y: np.ndarray
    band: tuple[np.ndarray, np.ndarray] | None = None


def styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Makes a function draw in this module's style, leaving matplotlib's settings unchanged."""

    @functools.wraps(draw)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            return draw(*args, **kwargs)

    return wrapped


def svg(figure: Figure, name: str) -> str:
    """Returns the figure as an inline `<svg>` element that scales with its column.

    Args:
      figure: figure from one of the functions below.
      name: makes the figure's ids unique on a page. Screen readers read the element with the id
        "caption-" followed by this name.
    """
    stream = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    text = stream.getvalue()
    text = text[text.index("<svg") :].strip()
    box = re.search(r'viewBox="[^"]*"', text)
    if box is None:
        raise RuntimeError("Expected a viewBox in the SVG that matplotlib wrote.")
    label = html.escape(f"caption-{name}")
    head = f'<svg {box.group()} role="img" aria-labelledby="{label}">'
    text = head + text[text.index(">") + 1 :]
    text = text.replace("xlink:href", "href")
    # Group ids are the same in all figures and are dropped; referenced ids are salted by `name`.
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]*)', text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r'font-family: [^;"]*', "font-family: var(--sans)", text)
    for variable, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--{variable})")
    return text


@styled
def curves(
    lines: Sequence[Curve],
    title: str,
    y_label: str,
    *,
    share: bool = False,
    smooth: bool = False,
    phases: Sequence[int] = (),
) -> Figure:
    """Plots metrics over training steps, one line per run or method, optionally with a band.

    Args:
      lines: lines to draw.
      title: title of the figure.
      y_label: label of the y axis.
      share: whether the values are fractions of 1, to be shown in percent and marked by dots.
      smooth: whether to draw a running mean over 2 % of the run, with the raw values faintly.
      phases: steps to mark with dotted lines.
    """
    figure, axes = _axes(title, "training step", y_label)
    for step in phases:
        axes.axvline(step, color=MUTED, linewidth=0.7, linestyle=":", alpha=0.7)
    for line in lines:
        colour = _series(line.method)
        # A color that repeats gets different dashes.
        dashes = LINES[(line.method + line.method // len(SERIES)) % len(LINES)]
        y, low_high = line.y, line.band
        if smooth and len(y) >= 100:
            if low_high is None:
                axes.plot(line.x, y, color=colour, alpha=0.22, linewidth=0.7)
            y, *smoothed = (summary.running_mean(v, len(y) // 50) for v in (y, *(low_high or ())))
            low_high = smoothed or None
        if low_high is not None:
            low, high = low_high
            axes.fill_between(line.x, low, high, color=colour, alpha=0.16, linewidth=0)
        marker = "o" if share or len(y) == 1 else ""
        axes.plot(
            *(line.x, y),
            color=colour,
            linestyle=dashes,
            label=line.label,
            marker=marker,
            markersize=3.5,
        )
    if share:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    if num_labels := sum(line.label is not None for line in lines):
        axes.legend(fontsize=9 if num_labels < 6 else 7)
    return figure


@styled
def accuracies(methods: Sequence[summary.Method], title: str = "Accuracy") -> Figure:
    """Plots each method's mean accuracy as a bar, its interval as a line and its seeds as dots."""
    figure, axes = _axes(title, "", "", height=max(_SIZE[1], 0.36 * len(methods) + 0.8))
    draw_accuracies(axes, methods)
    return figure


def draw_accuracies(axes: Axes, methods: Sequence[summary.Method]) -> None:
    """Draws horizontal bars, the first method on top."""
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x")
    for row, method in enumerate(methods):
        low, high = method.interval
        axes.barh(row, method.mean, height=0.52, color=PAGE)  # Hides the grid behind the bar.
        axes.barh(row, method.mean, height=0.52, color=_series(method.number), alpha=0.7)
        axes.plot([low, high], [row, row], color=INK, linewidth=1.3, marker="|", markersize=8)
        if len(method.accuracies) > 1:
            axes.plot(
                *(method.accuracies, [row + 0.36] * len(method.accuracies)),
                linestyle="",
                marker="o",
                markersize=3.2,
                color=INK,
                alpha=0.65,
            )
        label = summary.percent(method.mean)
        axes.annotate(label, (high, row), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(methods)), [method.name for method in methods])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    top = max(method.interval[1] for method in methods)
    axes.set_xlim(0, min(1.22, 1.3 * top + 0.03))
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xticks([t for t in axes.get_xticks() if 0 <= t <= 1])
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")


@styled
def start_steps(start_steps_TxN: np.ndarray, num_steps_N: np.ndarray | None) -> Figure:
    """Plots each phase's mean c_i and the central 50% and 80% of the examples."""
    figure, axes = _axes("Input steps", "phase t", "cᵢ(t), leading steps")
    phase = np.arange(len(start_steps_TxN))
    low, first, third, high = np.quantile(start_steps_TxN, (0.1, 0.25, 0.75, 0.9), axis=1)
    axes.fill_between(phase, low, high, color=SERIES[0], alpha=0.13, linewidth=0, label="80%")
    axes.fill_between(phase, first, third, color=SERIES[0], alpha=0.22, linewidth=0, label="50%")
    axes.plot(phase, start_steps_TxN.mean(1), color=SERIES[0], marker="o", ms=3.5, label="mean")
    if num_steps_N is not None:
        mean = float(num_steps_N.mean())
        axes.axhline(mean, color=MUTED, linewidth=1, linestyle=":", label="mean length nᵢ")
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # Room for the legend.
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.legend(loc="upper right", ncols=2, columnspacing=1.2)
    return figure


@styled
def schedule(target_T: np.ndarray | None, remaining_T: np.ndarray) -> Figure:
    """Plots Σ h(t), the difficulty of all output, against its target D(t) (Eq. 9, Eq. 10)."""
    figure, axes = _axes("Difficulty of the output", "phase t", "fraction of total difficulty B")
    draw_schedule(axes, target_T, remaining_T)
    return figure


def draw_schedule(axes: Axes, target_T: np.ndarray | None, remaining_T: np.ndarray) -> None:
    """Draws both curves as fractions of B, the difficulty of all steps, reached at the end."""
    total = float(remaining_T[-1]) or 1.0
    phase = np.arange(len(remaining_T))
    axes.bar(phase, remaining_T / total, width=0.62, color=PAGE)  # Hides the grid behind the bar.
    axes.bar(phase, remaining_T / total, width=0.62, color=SERIES[0], alpha=0.7, label="Σ h(t)")
    if target_T is not None:
        axes.plot(phase, target_T / total, color=SERIES[1], marker="o", ms=3.5, label="target D(t)")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(0, 1.05)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.legend(loc="upper left")


@styled
def start_steps_by_cluster(start_steps_TxN: np.ndarray, cluster_N: np.ndarray) -> Figure:
    """Plots the mean c_i of each question cluster, plus and minus one standard deviation."""
    figure, axes = _axes("Input steps by cluster", "phase t", "cᵢ(t), leading steps")
    phase = np.arange(len(start_steps_TxN))
    for k in np.unique(cluster_N):
        rows = start_steps_TxN[:, cluster_N == k]
        colour, dashes = SERIES[k % len(SERIES)], LINES[k % len(LINES)]
        mean, spread = rows.mean(1), rows.std(1)
        low = np.maximum(mean - spread, 0)
        axes.fill_between(phase, low, mean + spread, color=colour, alpha=0.07, linewidth=0)
        label = f"{k + 1} ({rows.shape[1]:,})"
        axes.plot(phase, mean, color=colour, linestyle=dashes, label=label)
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # Room for the legend.
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    if len(np.unique(cluster_N)) <= len(SERIES):
        axes.legend(loc="upper right", ncols=2, columnspacing=1.2, title="cluster (examples)")
    return figure


@styled
def input_steps(start_steps_TxN: np.ndarray, num_steps_N: np.ndarray) -> Figure:
    """Plots the fractions of examples by number of input steps, and of those left out."""
    figure, axes = _axes("Examples by input steps", "phase t", "fraction of examples")
    axes.grid(visible=False)
    phase, bottom = np.arange(len(start_steps_TxN)), np.zeros(len(start_steps_TxN))
    out = start_steps_TxN > num_steps_N
    kinds = [(f"{k} input", ~out & (start_steps_TxN == k)) for k in range(3)]
    kinds += [("3+ input", ~out & (start_steps_TxN >= 3)), ("left out", out)]
    for (label, members), colour in zip(kinds, (0, 5, 3, 1, 2), strict=True):
        fraction = members.mean(1)
        if fraction.any():
            style = {"color": SERIES[colour], "alpha": 0.75, "edgecolor": PAGE, "linewidth": 0.8}
            axes.bar(phase, fraction, bottom=bottom, width=0.9, label=label, **style)
            bottom += fraction
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylim(0, 1.3)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.legend(loc="upper left", ncols=3, columnspacing=1.2)
    return figure


@styled
def weights(values: np.ndarray, keypoint: np.ndarray | None) -> Figure:
    """Plots a histogram of all weights, or one each of keypoints and filler if these are known."""
    figure, axes = _axes("Token weights", "wⱼ", "fraction of tokens")
    groups = [(values, "all tokens", 1)]
    if keypoint is not None and keypoint.any() and not keypoint.all():
        groups = [(values[~keypoint], "filler", 2), (values[keypoint], "keypoints", 0)]
    _histograms(axes, groups, np.linspace(0, 1, 31))
    axes.set_xlim(0, 1)
    return figure


@styled
def difficulties(values: np.ndarray) -> Figure:
    """Plots a histogram of all steps' d_k; the last bin holds the hardest 1%."""
    figure, axes = _axes("Step difficulties", "dₖ in nats", "fraction of steps")
    top = float(np.quantile(values, 0.99)) if len(values) else 1.0
    top = top if top > 0 else 1.0
    _histograms(axes, [(np.minimum(values, top), None, 1)], np.linspace(0, top, 31))
    mean = float(values.mean()) if len(values) else 0.0
    axes.axvline(mean, color=INK, linewidth=1, linestyle=":", label=f"mean {mean:.2f}")
    axes.legend()
    return figure


@styled
def by_group(groups: summary.Groups, title: str, x_label: str) -> Figure:
    """Plots the mean and the central 50% of the step difficulties for each x."""
    figure, axes = _axes(title, x_label, "dₖ in nats")
    axes.vlines(groups.x, groups.low, groups.high, color=SERIES[1], alpha=0.3, linewidth=7)
    axes.plot(groups.x, groups.mean, color=SERIES[1], marker="o", markersize=5)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return figure


@styled
def accuracy_by_group(groups: summary.Groups, title: str, x_label: str) -> Figure:
    """Plots the fraction of correct answers for each x, with its 95% interval."""
    figure, axes = _axes(title, x_label, "correct answers")
    axes.vlines(groups.x, groups.low, groups.high, color=SERIES[3], alpha=0.3, linewidth=7)
    axes.plot(groups.x, groups.mean, color=SERIES[3], marker="o", markersize=5)
    axes.set_ylim(0, None)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return figure


@styled
def sensitivity(
    setting: str, x: np.ndarray, mean: np.ndarray, spread: np.ndarray, base: float
) -> Figure:
    """Plots accuracy over the values [m] of one setting, with its spread over seeds."""
    figure, axes = _axes(setting, "", "correct answers")
    axes.axvline(base, color=MUTED, linewidth=1, linestyle=":")
    axes.errorbar(
        x, mean, yerr=spread, color=SERIES[0], marker="o", ms=4.5, elinewidth=1, capsize=3
    )
    top = float((mean + spread).max())
    axes.set_ylim(0, 1.15 * top if top else 1)
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    return figure


def _axes(
    title: str, x_label: str, y_label: str, *, height: float = _SIZE[1]
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    return figure, axes


def _histograms(
    axes: Axes, groups: Sequence[tuple[np.ndarray, str | None, int]], bins: np.ndarray
) -> None:
    """Draws a normalized histogram of each group (values, label, color)."""
    for values, label, colour in groups:
        fraction = np.full(len(values), 1 / max(len(values), 1))
        style = {"bins": bins.tolist(), "weights": fraction, "color": SERIES[colour]}
        axes.hist(values, **style, histtype="stepfilled", linewidth=0, alpha=0.4, label=label)
        axes.hist(values, **style, histtype="step", linewidth=1.1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    if any(label for _, label, _ in groups):
        axes.legend()


def _series(number: int) -> str:
    return SERIES[number % len(SERIES)]
