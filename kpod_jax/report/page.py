"""The report: one HTML file that needs no network and no other file, and can do without scripts."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from kpod_jax import __version__
from kpod_jax.report import (
    evaluation,
    script,
    sections,
    style,
    summary,
    sweep,
    sweep_text,
    token_sections,
)
from kpod_jax.report import run as run_files
from kpod_jax.report.markup import Html, join, tag
from kpod_jax.utils import files

# Of one run; the first two are its results.
_SECTIONS = (
    sections.results,
    sections.training,
    sections.schedule,
    token_sections.token_weights,
    token_sections.rationales,
    token_sections.difficulties,
    evaluation.by_difficulty,
    sections.generations,
    sections.configuration,
)


def write(workdir: files.PathLike) -> pathlib.Path:
    """Writes `report.html` from the files of a work directory; shows what is there.

    Returns:
      The path of the report.

    Raises:
      UserError: files are damaged or of different runs.
    """
    run = run_files.load(workdir)
    path = run.directory / "report.html"
    found = [make(run) for make in _SECTIONS]
    files.write_text(path, _report(run, run.directory, summary.verdict(run), found))
    return path


def write_sweep(root: files.PathLike, result: Mapping[str, Any]) -> pathlib.Path:
    """Writes `report.html` of a sweep: the comparison of its runs, then one of them in detail.

    Args:
      root: the directory that holds the runs' directories.
      result: what `comparison.json` holds.

    Returns:
      The path of the report.

    Raises:
      UserError: files are damaged or of different runs.
    """
    root = files.as_path(root)
    cells = [cell for row in result["rows"] if (cell := row["cells"][0])]
    paths = {s["run"]: root / s["run"] / "metrics.jsonl" for cell in cells for s in cell["seeds"]}
    curves = {name: run_files.read_jsonl(p) for name, p in paths.items() if p.is_file()}
    run = run_files.load(root / result["shown"])
    untrained = next((r["cells"][0] for r in result["rows"] if r["method"] == "none"), None)
    if untrained:
        name = untrained["seeds"][0]["run"]
        split, rows = run_files.read_predictions(root / name, result["columns"][0]["file"])
        if split == result["columns"][0]["file"]:
            before = {str(row["id"]): str(row["prediction"]) for row in rows}
            run = dataclasses.replace(run, before=before)
    found = [
        sweep.failures(result),
        sweep.comparison(result),
        sweep.sensitivity(result),
        sections.training(run, sweep.methods(result, 0, curves)),
        sweep.tests(result),
        sweep.shown_run(result),
        *(make(run) for make in _SECTIONS[2:]),
    ]
    path = root / "report.html"
    files.write_text(path, _report(run, root, sweep_text.verdict(result), found))
    return path


def _report(
    run: run_files.Run, directory: pathlib.Path, verdict: str, found: Sequence[Html | None]
) -> str:
    """The whole page of a run or a sweep."""
    there = [part for part in found if part is not None]
    name = directory.resolve().name
    top = tag(
        "header",
        tag("p", _subject(run) or name, class_="eyebrow"),
        tag("h1", "Keypoint-based progressive distillation"),
        tag("p", verdict, class_="verdict"),
        tag("nav", *map(_link, there), aria_label="Sections"),
    )
    return _page(f"KPOD report: {name}", [top, *there])


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
            Html(f'<meta http-equiv="Content-Security-Policy" content="{script.POLICY}">'),
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
    body = tag("body", tag("main", *parts, foot), tag("script", Html(script.SCRIPT)))
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
