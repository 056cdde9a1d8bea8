"""The values and figures on a run's page, one function per section.

Each function returns the `section` for the template of the same name in `templates/sections/`, or
None if the run lacks the files for it. Text and markup are in the templates.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kpod_jax.config import paper
from kpod_jax.data import ground_truth
from kpod_jax.evaluation import error_analysis
from kpod_jax.report import figures, heatmap, summary
from kpod_jax.report.run import Run

Section = dict[str, Any] | None

_GENERATIONS = 6  # Of each kind, correct and wrong.
_MORE_GENERATIONS = 30  # Of each kind, collapsed.
_RATIONALES = 4
_MORE_RATIONALES = 56  # Collapsed.
_WORDS = 12  # Heaviest and lightest.
_HARDEST = 10  # Steps.
_MOVED = 3  # Examples named per phase.


def of_run(run: Run) -> dict[str, Section]:
    """Returns all sections by name, in page order."""
    detail = in_detail(run)  # First what needs no explanation.
    first = {key: detail.pop(key) for key in ("rationales",)}
    return {**first, "results": run.results, "training": training(run), **detail}


def in_detail(run: Run) -> dict[str, Section]:
    """Returns the sections that a sweep's page shows for one of its runs."""
    shown = spread(len(run.records), _RATIONALES)
    more = [i for i in spread(len(run.records), _RATIONALES + _MORE_RATIONALES) if i not in shown]
    return {
        "schedule": schedule(run),
        "token_weights": token_weights(run),
        "rationales": rationales(run, shown, more),
        "step_difficulty": step_difficulty(run),
        "accuracy_by_difficulty": accuracy_by_difficulty(run),
        "generations": generations(run),
        "configuration": configuration(run),
    }


def training(run: Run, compared: Sequence[summary.Method] = ()) -> Section:
    """Returns loss and validation accuracy during distillation, of one run or several methods."""
    methods = [(m.name, m.number, m.curves) for m in compared] or [(None, 0, (run.metrics,))]
    phases = [] if compared else summary.by_phase(run.metrics)
    starts = [] if compared else summary.phase_starts(run.metrics)
    drawings = {}
    for key, title, unit, style in (
        ("loss", "Training loss", "nats per token", {"smooth": True}),
        ("validation_accuracy", "Validation accuracy", "correct answers", {"share": True}),
        ("validation_token_loss", "Validation loss", "nats per token", {}),
    ):
        lines = []
        for name, number, runs in methods:
            curves = [summary.series(rows, "distill", key) for rows in runs]
            if curves := [(x, y) for x, y in curves if len(x)]:
                x, mean, deviation = summary.band(curves)
                band = (mean - deviation, mean + deviation) if len(curves) > 1 else None
                lines.append(figures.Curve(name, number, x, mean, band))
        lines = [line for line in lines if len(line.x) > 1]  # A point is no curve.
        if lines:
            drawings[key] = figures.curves(lines, title, unit, phases=starts, **style)
    if not drawings:
        return None
    return {
        "drawings": drawings,
        "has_bands": any(len(m.curves) > 1 for m in compared),
        "has_marks": bool(starts),
        "phases": phases if len(phases) > 1 else [],
    }


def schedule(run: Run) -> Section:
    """Returns how steps move from the input to the output."""
    if run.schedule is None or not run.schedule["start_steps"].any():
        return None  # Whole rationales from the start.
    start, clusters = run.schedule["start_steps"], run.schedule["clusters"]
    target, cluster_ids = run.schedule.get("target"), np.unique(clusters)
    sizes = run.difficulty.lengths if run.difficulty is not None else start.max(axis=0)
    moves, previous = [], sizes
    for phase, current in enumerate(start if run.records else ()):
        moved = np.flatnonzero(current < previous)
        counts = [np.count_nonzero(clusters[moved] == k) for k in cluster_ids]
        moves.append((phase, len(moved), counts, [run.records[i].id for i in moved[:_MOVED]]))
        previous = current
    return {
        "phases": len(start),
        "start_steps": figures.start_steps(start, sizes),
        "has_target": target is not None,
        "output": figures.schedule(target, run.schedule["remaining"]),
        "input_steps": figures.input_steps(start, sizes),
        "by_cluster": figures.start_steps_by_cluster(start, clusters),
        "clusters": [f"Cluster {k + 1}" for k in cluster_ids],
        "moves": moves,
    }


def token_weights(run: Run) -> Section:
    """Returns the learned weights: summary, histogram, curves, heaviest and lightest words."""
    if run.weights is None and run.weighting is None:
        return None
    state = {key: value for key, value in (run.weighting or {}).items() if value is not None}
    drawings, words, keypoint = {}, None, None
    if run.weights is not None and len(run.weights.values):
        state.setdefault("mean_weight", float(run.weights.values.mean()))
        if run.spans is not None:
            keypoint = ground_truth.keypoint_tokens(run.records, run.spans)
        drawings["weights"] = figures.weights(run.weights.values, keypoint)
    # Rows without a mean weight come from fitting the answerer.
    rows = [row for row in run.metrics if row.get("mean_weight") is not None]
    for key, title, unit in (
        ("answer_loss", "Answer loss", "Lₚ in nats"),
        ("mean_weight", "Mean weight", "mean of wⱼ"),
    ):
        x, y = summary.series(rows, "weigh", key)
        if len(x) > 1:
            line = figures.Curve(None, 0, x, y)
            drawings[key] = figures.curves([line], title, unit, smooth=True)
    if run.records and run.spans is not None and run.weights is not None:
        heavy, light, fewest = summary.word_means(run.records, run.spans, run.weights, _WORDS)
        words = {"heavy": heavy, "light": light, "fewest": fewest} if heavy else None
    return {
        "state": state,
        "drawings": drawings,
        "has_keypoints": keypoint is not None,
        "words": words,
    }


def spread(count: int, shown: int) -> list[int]:
    """Returns at most `shown` of `count` indices, evenly spaced from the first to the last."""
    shown = min(shown, count)
    return np.linspace(0, count - 1, shown).round().astype(int).tolist()


def rationales(
    run: Run, shown: Sequence[int], more: Sequence[int] = (), *, chosen: bool = False
) -> Section:
    """Returns rationales with words colored by weight.

    Args:
      run: the run with the training rationales.
      shown: indices of the examples shown.
      more: indices of the examples collapsed.
      chosen: whether the user selected these examples.
    """
    weights, spans = run.weights, run.spans
    if weights is None or spans is None or not run.records:
        return None

    def cards(indices: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {
                "record": run.records[i],
                "steps": heatmap.steps(run.records[i], spans[i], weights[i]),
                "difficulty": None if run.difficulty is None else run.difficulty[i],
            }
            for i in indices
        ]

    return {
        "chosen": chosen,
        "total": len(run.records),
        "has_keypoints": any(run.records[i].keypoints for i in shown),
        "has_difficulty": run.difficulty is not None,
        "shown": cards(shown),
        "folded": cards(more),
    }


def step_difficulty(run: Run) -> Section:
    """Returns which steps are hard for the student before distillation."""
    if run.difficulty is None or not len(run.difficulty.values):
        return None
    values = run.difficulty.values.astype(np.float64)
    positions = summary.grouped(summary.step_numbers(run.difficulty), values)
    drawings = {
        "difficulties": figures.difficulties(values),
        "position": figures.by_group(positions, "Difficulty by position", "step of the rationale"),
    }
    hardness = ground_truth.hardness(run.records)
    rho = ground_truth.rank_correlation(hardness, values) if hardness is not None else None
    if hardness is not None and rho is not None:
        groups = summary.grouped(hardness, values)
        title = "Difficulty by known hardness"
        drawings["hardness"] = figures.by_group(groups, title, "hardness of the step")
    hardest = summary.hardest_steps(run.records, run.difficulty, _HARDEST) if run.records else []
    return {"count": len(values), "drawings": drawings, "rho": rho, "hardest": hardest}


def accuracy_by_difficulty(run: Run) -> Section:
    """Returns accuracy by the number of steps in the teacher's rationale, and by hardness."""
    rows = [(row, run.evaluated_records.get(str(row["id"]))) for row in run.predictions]
    rows = [(row, record) for row, record in rows if record is not None and record.steps]
    correct = np.asarray([row["correct"] for row, _ in rows], np.float64)
    charts: list[tuple[str, str, list[float]]] = [
        ("Accuracy by length", "steps in the teacher's rationale", [len(r.steps) for _, r in rows])
    ]
    if rows and all(record.hardness for _, record in rows):
        hardest = [max(record.hardness or ()) for _, record in rows]
        charts.append(("Accuracy by hardness", "hardness of the hardest step", hardest))
    drawings = []
    for title, x_label, values in charts:
        x = np.asarray(values)
        if np.unique(x).size > 1:
            groups = summary.accuracy_by(x, correct)
            counts = [np.count_nonzero(x == value) for value in groups.x]
            drawings.append((figures.accuracy_by_group(groups, title, x_label), counts))
    return {"drawn": drawings} if drawings else None


def generations(run: Run) -> Section:
    """Returns correct and wrong generations beside the teacher's rationales."""
    if not run.predictions:
        return None
    wrong = [row for row in run.predictions if not row["correct"]]
    right = [row for row in run.predictions if row["correct"]]

    def cards(selection: slice) -> list[dict[str, Any]]:
        result = []
        for row in (*wrong[selection], *right[selection]):
            record = run.evaluated_records.get(str(row["id"]))
            rationale = record.rationale if record is not None else ""
            before = run.generations_before.get(str(row["id"]))
            result.append({"row": row, "rationale": rationale, "before": before})
        return result

    classified = [row for row in wrong if row.get("error") in error_analysis.CLASSES]
    errors = []
    for name, meaning in error_analysis.CLASSES.items():
        if rows := [row for row in classified if row["error"] == name]:
            errors.append((name, len(rows), len(rows) / len(classified), rows[0]["id"], meaning))
    return {
        "wrong": len(wrong),
        "right": len(right),
        "each": _GENERATIONS,
        "errors": errors,
        "shown": cards(slice(_GENERATIONS)),
        "folded": cards(slice(_GENERATIONS, _GENERATIONS + _MORE_GENERATIONS)),
    }


def configuration(run: Run) -> Section:
    """Returns all settings of the run, and those that differ from the paper's."""
    if not run.config:
        return None
    settings = [(key, _text(value)) for key, value in _leaves(run.config)]
    return {"settings": settings, "paper": _compare_with_paper(run.config)}


def _compare_with_paper(config: Mapping[str, Any]) -> Section:
    values = dict(_leaves(config.get("config", {})))
    if "student.model" not in values or "data.name" not in values:
        return None
    model, data = str(values["student.model"]), str(values["data.name"])
    expected, student = paper.settings(model, data), paper.student(model)
    given = [key for key in expected if key in values]
    others = [key for key in given if paper.differs(values[key], expected[key])]
    return {
        "student": student.name if student else None,
        "given": len(given),
        "others": [(key, _text(values[key]) or "–", expected[key]) for key in others],
    }


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("a.b.c", value) for every leaf of nested dicts."""
    if not isinstance(tree, Mapping) or not tree:
        yield name, tree
        return
    for key, inner in tree.items():
        yield from _leaves(inner, f"{name}.{key}" if name else str(key))


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(re.sub(r"\s+", " ", str(item)) for item in value)
    return "–" if value is None else str(value)
