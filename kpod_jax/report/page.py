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
    head = join(
        [
            Html('<meta charset="utf-8">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<meta name="color-scheme" content="light dark">'),
            tag("title", f"KPOD report: {name}"),
            tag("style", Html(style.css())),
        ]
    )
    top = tag(
        "header",
        tag("p", _subject(run) or name, class_="eyebrow"),
        tag("h1", "Keypoint-based progressive distillation"),
        tag("p", summary.verdict(run, compared), class_="verdict"),
        tag("nav", *map(_link, found), aria_label="Sections"),
    )
    foot = tag(
        "footer",
        f"KPOD-JAX {__version__}. The method: Feng et al., Keypoint-based Progressive "
        "Chain-of-Thought Distillation for LLMs, ICML 2024; equation numbers are the paper's.",
    )
    body = tag("body", tag("main", top, *found, foot))
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
