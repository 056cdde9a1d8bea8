"""Writes reports: self-contained HTML files that need no network and work without scripts."""

import base64
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from kpod_jax.evaluation.comparison import is_significant, points
from kpod_jax.report import colours, figures, sections, summary, sweep, sweep_text
from kpod_jax.report import run as run_files
from kpod_jax.utils import files
from kpod_jax.utils.printable import printable
from kpod_jax.version import __version__


def write(workdir: files.PathLike) -> pathlib.Path:
    """Writes `report.html` from those files that a work directory has.

    Returns:
      The path of the report.

    Raises:
      UserError: files are damaged or belong to different runs.
    """
    run = run_files.load(workdir)
    return _write(run.directory, "report", run, sections.of_run(run), summary.overview(run))


def write_sweep(root: files.PathLike, result: Mapping[str, Any]) -> pathlib.Path:
    """Writes `report.html` of a sweep: the comparison of its runs, then one of them in detail.

    Args:
      root: the directory that holds the runs' directories.
      result: contents of `comparison.json`.

    Returns:
      The path of the report.

    Raises:
      UserError: files are damaged or belong to different runs.
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
            run = dataclasses.replace(run, generations_before=before)
    page_sections = {
        "failures": sweep.failures(result),
        "comparison": sweep.comparison(result),
        "side_by_side": sweep.side_by_side(result, root),
        "sensitivity": sweep.sensitivity(result),
        "training": sections.training(run, sweep.methods(result, 0, curves)),
        "paired_tests": sweep.paired_tests(result),
        "shown_run": {"name": result["shown"]},
        **sections.in_detail(run),
    }
    return _write(
        root, "report", run, page_sections, sweep_text.verdict(result), sweep.title(result, run)
    )


def write_heat_map(run: run_files.Run, indices: Sequence[int], *, chosen: bool) -> pathlib.Path:
    """Writes `heatmap.html` into the run's directory: rationales with words colored by weight.

    Args:
      run: a run with records, weights and spans.
      indices: indices of the training examples.
      chosen: whether the user selected these examples.
    """
    page_sections = {"rationales": sections.rationales(run, indices, chosen=chosen)}
    return _write(run.directory, "heatmap", run, page_sections)


def _write(
    directory: pathlib.Path,
    kind: str,
    run: run_files.Run,
    page_sections: Mapping[str, sections.Section],
    verdict: str = "",
    title: str = "",
) -> pathlib.Path:
    """Renders the sections that are not None into `kind`.html in a directory."""
    name, title = directory.resolve().name, title or summary.title(run)
    text = template("page.html.j2").render(
        kind=kind,
        name=name,
        title=title,
        facts=summary.facts(run) if kind == "report" else [],
        command=(run.config or {}).get("command"),
        verdict=verdict,
        sections={key: section for key, section in page_sections.items() if section is not None},
    )
    files.write_text(directory / f"{kind}.html", text)
    return directory / f"{kind}.html"


def template(name: str) -> jinja2.Template:
    """Returns a template with access to the functions and values that it uses."""
    return _environment().get_template(name)


def _visible(value: Any) -> Any:
    """Escapes control and invisible characters; our own markup is left as it is."""
    is_text = isinstance(value, str) and not hasattr(value, "__html__")
    return printable(value, "\n\t") if is_text else value


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kpod_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = environment.get_template("report.js").render()
    scale = [i / (colours.LEVELS - 1) for i in range(colours.LEVELS)]
    environment.globals |= {
        "version": __version__,
        "script": script,
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "palette": colours.PALETTE,
        "scale": [(colours.heat(w), colours.heat(w, dark=True)) for w in scale],
        "level": colours.level,
        "svg": figures.svg,
        "percent": summary.percent,
        "points": points,
        "is_significant": is_significant,
        "sweep_text": sweep_text,
    }
    environment.filters["number"] = lambda value, spec=",": format(value, spec)
    return environment
