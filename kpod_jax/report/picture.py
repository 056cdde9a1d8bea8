"""Pictures of a run: one for a README, and rationales with words colored by weight."""

import io
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from kpod_jax.report import colours, figures, heatmap, summary, sweep
from kpod_jax.report import run as run_files
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError

_SIZE = (12.0, 4.0)  # Inches, at 100 dots each.
_FONT = 10.5
_LINES = 8  # Maximum per example, including its question.
_CANDIDATES = 50
_GAP = 1.1 / (_LINES + 0.6)  # Distance between lines, as a fraction of the panel's height.


class _Piece(NamedTuple):
    """A word or sign, its weight (None in the question), and whether a space precedes it."""

    text: str
    weight: float | None
    spaced: bool


def readme_picture(
    workdir: files.PathLike,
    path: files.PathLike,
    comparison: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Draws a rationale's heat map, the schedule and the accuracy of a run, 1200 × 400.

    Args:
      workdir: work directory of the run.
      path: path of the picture, ending in .png or .svg.
      comparison: result of a sweep, as for `write_sweep`; None: only this run's accuracy is shown.

    Returns:
      `path`.

    Raises:
      UserError: the run lacks data for the picture, or `path` has another suffix.
    """
    path = files.as_path(path)
    _kind(path)
    run = run_files.load(workdir)
    methods = [summary.method(run.results)] if run.results else []
    if comparison is not None:
        methods = sweep.methods(comparison, 0)
    available = {
        "records/train.jsonl": len(run.records) > 0,
        "token_weights.npz": run.weights is not None,
        "token_spans.npz": run.spans is not None,
        "schedule.npz": run.schedule is not None,
        "results.json": len(methods) > 0,
    }
    if missing := [name for name, is_available in available.items() if not is_available]:
        raise UserError(
            f"{run.directory} lacks {', '.join(missing)}, needed for the picture. Finish the run "
            "with --mode=all first."
        )
    return _save(lambda: _draw(run, methods), path)


def heat_map_picture(
    run: run_files.Run, indices: Sequence[int], path: files.PathLike
) -> pathlib.Path:
    """Draws rationales below their questions, with the color scale, 1000 wide.

    Args:
      run: a run with records, weights and spans.
      indices: indices of the training examples.
      path: path of the picture, ending in .png or .svg.

    Returns:
      `path`.

    Raises:
      UserError: `path` has another suffix.
    """
    return _save(lambda: _draw_heat_map(run, indices), files.as_path(path))


def _kind(path: pathlib.Path) -> str:
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise UserError(f"Cannot draw {path}: expected a file name ending in .png or .svg.")
    return kind


def _save(draw: Callable[[], Figure], path: pathlib.Path) -> pathlib.Path:
    kind, stream = _kind(path), io.BytesIO()
    no_metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    # SVG text is drawn as shapes, so words are placed as measured in any viewer.
    with matplotlib.rc_context({"svg.hashsalt": "kpod", "svg.fonttype": "path"}):
        draw().savefig(stream, format=kind, dpi=100, facecolor="white", metadata=no_metadata)
    with files.atomic_write(path) as file:
        file.write(stream.getvalue())
    return path


@figures.styled
def _draw_heat_map(run: run_files.Run, indices: Sequence[int]) -> Figure:
    width_inches, line, between = 10.0, 0.27, 0.2  # Width, line height and paragraph gap in inches.
    figure = Figure(figsize=(width_inches, 1.0), dpi=100)
    width = _measure(figure, (width_inches - 0.4) * 100)
    examples = [_wrap(_pieces(run, i), width) for i in indices]
    height = sum(len(lines) * line + between for lines in examples) + 0.5
    figure.set_size_inches(width_inches, height)
    axes = figure.add_axes((0.02, 0.0, 0.96, 1.0))
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(0, height))
    y = height - 0.25
    for lines in examples:
        _draw_lines(axes, lines, y, line)
        y -= len(lines) * line + between
    _draw_scale(axes, (0.065, 0.15 / height, 0.18, 0.12 / height), 0.21)
    return figure


@figures.styled
def _draw(run: run_files.Run, methods: Sequence[summary.Method]) -> Figure:
    assert run.schedule is not None
    figure = Figure(figsize=_SIZE, dpi=100)
    grid = figure.add_gridspec(
        1, 3, width_ratios=(1.6, 1, 1), left=0.02, right=0.985, top=0.885, bottom=0.14, wspace=0.2
    )
    rationale, schedule, accuracy = (figure.add_subplot(cell) for cell in grid)
    rationale.set_title("What decides the answer: token weights")
    _draw_rationale(rationale, run)
    schedule.set(title="Schedule: the last steps come first", xlabel="phase")
    figures.draw_schedule(schedule, run.schedule.get("target"), run.schedule["remaining"])
    schedule.set_ylim(0, 1.2)
    schedule.set_yticks([0, 0.25, 0.5, 0.75, 1])
    accuracy.set_title("Accuracy of the student")
    figures.draw_accuracies(accuracy, methods)
    accuracy.set_yticks([])
    accuracy.set_xlabel(f"correct answers, {methods[0].total:,} {methods[0].split} questions")
    for row, method in enumerate(methods):  # Names above the bars leave these more room.
        accuracy.annotate(method.name, (0, row - 0.28), (1, 4), textcoords="offset points")
    accuracy.set_ylim(len(methods) - 0.55, -0.75)
    return figure


def _draw_rationale(axes: Axes, run: run_files.Run) -> None:
    """Draws an example's question and colored rationale, with the color scale below."""
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    figure = axes.get_figure(root=True)
    assert figure is not None
    width = _measure(figure, axes.get_window_extent().width)
    # The longest of the first examples that fits, so the panel is neither empty nor cut off.
    candidates = [_wrap(_pieces(run, i), width) for i in range(min(_CANDIDATES, len(run.records)))]
    lines = max(candidates, key=lambda lines: (len(lines) <= _LINES, len(lines)))
    _draw_lines(axes, lines[:_LINES], 0.945, _GAP)
    _draw_scale(axes, (0.135, -0.135, 0.3, 0.04), -0.115)


def _measure(figure: Figure, panel: float) -> Callable[[str], float]:
    """Returns a function from text to its width as a fraction of a panel's, given in dots."""
    renderer, font = FigureCanvasAgg(figure).get_renderer(), FontProperties(size=_FONT)
    return lambda text: renderer.get_text_width_height_descent(text, font, False)[0] / panel


def _draw_lines(
    axes: Axes, lines: Sequence[Sequence[tuple[float, _Piece]]], top: float, gap: float
) -> None:
    """Draws words on their colors, line by line from `top` down."""
    for row, line in enumerate(lines):
        for x, piece in line:
            ground, ink = "none", colours.MUTED
            if piece.weight is not None:
                ground, ink = colours.heat(piece.weight)
            box = {"boxstyle": "round,pad=0.14,rounding_size=0.25", "fc": ground, "ec": "none"}
            # Dollar signs do not start formulas.
            text, y = piece.text.replace("$", r"\$"), top - row * gap
            axes.text(x, y, text, fontsize=_FONT, color=ink, va="center", bbox=box)


def _draw_scale(axes: Axes, place: tuple[float, float, float, float], y: float) -> None:
    """Draws the color scale at a place in the axes, with labels for its ends at height y."""
    scale = axes.inset_axes(place)
    shades = [colours.heat(i / 64)[0] for i in range(65)]
    scale.imshow([range(65)], aspect="auto", cmap=ListedColormap(shades))
    scale.axis("off")
    style = {"color": colours.MUTED, "va": "center", "fontsize": 9}
    axes.text(0.0, y, "weight 0", **style)
    axes.text(place[0] + place[2] + 0.015, y, "1", **style)


def _pieces(run: run_files.Run, index: int) -> Iterator[_Piece]:
    """Yields the question's words, then the rationale's."""
    assert run.weights is not None and run.spans is not None
    record = run.records[index]
    for word in record.question.split():
        yield _Piece(word, None, True)
    text, end = record.rationale, -1
    for word in heatmap.words(text, run.spans[index], run.weights[index]):
        yield _Piece(text[word.start : word.end], word.weight, word.start > end)
        end = word.end


def _wrap(
    pieces: Iterator[_Piece], width: Callable[[str], float]
) -> list[list[tuple[float, _Piece]]]:
    """Returns lines of (x, piece), x from 0 to 1; the rationale starts on a new line."""
    lines: list[list[tuple[float, _Piece]]] = []
    x, space, weighted = 2.0, width("n") * 0.6, False
    for piece in pieces:
        x += space if piece.spaced else space / 4
        starts = (piece.weight is not None) != weighted
        if starts or (x + width(piece.text) > 1 and piece.spaced):
            lines.append([])
            x, weighted = 0.01, piece.weight is not None
        if not lines:
            lines.append([])
        lines[-1].append((x, piece))
        x += width(piece.text)
    return lines
