"""The report: one HTML file that needs no network, no script and no other file."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from kpod_jax import __version__, files
from kpod_jax.report import run as run_files
from kpod_jax.report import sections, style, summary, token_sections
from kpod_jax.report.markup import Html, join, tag

_SECTIONS = (
    sections.results,
    sections.training,
    sections.schedule,
    token_sections.token_weights,
    token_sections.rationales,
    token_sections.difficulties,
    sections.generations,
    sections.configuration,
)

# Should any markup slip in unescaped, browsers still run nothing and fetch nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write(
    workdir: files.PathLike, comparison: Sequence[Mapping[str, Any]] | None = None
) -> pathlib.Path:
    """Writes `report.html` from the files of a work directory; shows what is there.

    Args:
      workdir: of one run.
      comparison: results (as in results.json) of several runs, grouped by method for the table; a
        run's "metrics", the path of its metrics.jsonl, adds its curves.

    Returns:
      The path of the report.

    Raises:
      UserError: files are damaged or of different runs.
    """
    run = run_files.load(workdir)
    compared = summary.methods(comparison or (), run_files.read_jsonl)
    path = run.directory / "report.html"
    files.write_text(path, render(run, compared))
    return path


def render(run: run_files.Run, compared: Sequence[summary.Method]) -> str:
    """The whole page."""
    found = [part for make in _SECTIONS if (part := make(run, compared)) is not None]
    name = run.directory.resolve().name
    top = tag(
        "header",
        tag("p", _subject(run) or name, class_="eyebrow"),
        tag("h1", "Keypoint-based progressive distillation"),
        tag("p", summary.verdict(run, compared), class_="verdict"),
        tag("nav", *map(_link, found), aria_label="Sections"),
    )
    return _page(f"KPOD report: {name}", [top, *found])


def write_heat_map(run: run_files.Run, indices: Sequence[int], which: str) -> pathlib.Path:
    """Writes `heatmap.html` into the run's directory: rationales with their words coloured.

    Args:
      run: with records, weights and spans.
      indices: of the training examples.
      which: a sentence that says why these.
    """
    path, name = run.directory / "heatmap.html", run.directory.resolve().name
    top = tag(
        "header", tag("p", _subject(run) or name, class_="eyebrow"), tag("h1", "Token weights")
    )
    parts = [top, token_sections.chosen_rationales(run, indices, which)]
    files.write_text(path, _page(f"KPOD token weights: {name}", parts))
    return path


def _page(title: str, parts: Sequence[Html]) -> str:
    head = join(
        [
            Html('<meta charset="utf-8">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<meta name="color-scheme" content="light dark">'),
            tag("title", title),
            tag("style", Html(style.css())),
        ]
    )
    foot = tag(
        "footer",
        f"KPOD-JAX {__version__}. The method: Feng et al., Keypoint-based Progressive "
        "Chain-of-Thought Distillation for LLMs, ICML 2024; equation numbers are the paper's.",
    )
    body = tag("body", tag("main", *parts, foot))
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n{body}</html>\n'


def _subject(run: run_files.Run) -> str:
    """What was trained on what, from the configuration; empty where that does not say."""
    tree = run.config or {}
    tree = tree.get("config", tree)
    found = [tree.get(room, {}).get(key) for room, key in (("student", "model"), ("data", "name"))]
    return " on ".join(str(value) for value in found if value)


def _link(section: Html) -> Html:
    """A link to a section, from its id and its heading, both made by `markup.section`."""
    name = section.split('id="', 1)[1].split('"', 1)[0]
    title = section.split("<h2>", 1)[1].split("</h2>", 1)[0]
    return Html(f'<a href="#{name}">{title}</a>')
