"""Parts of the report on how a student was evaluated: samples, other data sets, kinds of errors."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kpod_jax.evaluation import error_analysis
from kpod_jax.report import figures, summary
from kpod_jax.report.markup import Html, figure, section, table, tag, tiles
from kpod_jax.report.run import Run


def samples(result: Mapping[str, Any]) -> Html | None:
    """How far the samples of a question agree, and what a perfect choice among them would reach."""
    if "samples" not in result:
        return None
    count = result["samples"]
    return tiles(
        [
            ("Agreement", summary.percent(result["agreement"]), f"of {count} samples a question"),
            ("Any sample correct", summary.percent(result["oracle"]), f"pass@{count}, an oracle"),
        ]
    )


def out_of_distribution(result: Mapping[str, Any]) -> Html | None:
    """Accuracy on data sets that the student was not trained on, one a row."""
    if not result.get("ood"):
        return None
    rows = [
        [
            name,
            tag("b", summary.percent(one["accuracy"])),
            summary.percent(*one["interval"]),
            f"{one['correct']:,} of {one['total']:,}",
            f"{one.get('rejected', 0):,}",
        ]
        for name, one in result["ood"].items()
    ]
    head = ["Data set", "Accuracy", "95 % interval", "Correct", "Records left out"]
    caption = "Test questions of data sets that the student was not trained on."
    return tag("div", table(head, rows, range(1, 5)), tag("p", caption, class_="caption"))


def by_difficulty(run: Run) -> Html | None:
    """Whether the student fails where much is to be done: accuracy by the teacher's steps."""
    asked = [(row, run.judged.get(str(row["id"]))) for row in run.predictions]
    asked = [(row, record) for row, record in asked if record is not None and record.steps]
    correct = np.asarray([row["correct"] for row, _ in asked], np.float64)
    kinds: list[tuple[str, str, list[float]]] = [
        ("Accuracy by length", "steps of the teacher's rationale", [len(r.steps) for _, r in asked])
    ]
    if asked and all(record.hardness for _, record in asked):
        hardest = [max(record.hardness or ()) for _, record in asked]
        kinds.append(("Accuracy by hardness", "hardness of the hardest step", hardest))
    figures_ = []
    for title, x_label, values in kinds:
        x = np.asarray(values)
        if np.unique(x).size < 2:
            continue
        groups = summary.accuracy_by(x, correct)
        counts = ", ".join(f"{np.count_nonzero(x == kind):,}" for kind in groups.x)
        caption = f"Share of correct answers with its 95 % interval, of {counts} questions."
        drawing = figures.accuracy_by_group(groups, title, x_label)
        figures_.append(figure(drawing, f"by-{len(figures_)}", caption))
    if not figures_:
        return None
    return section("Difficulty and correctness", tag("div", *figures_, class_="grid"))


def errors(predictions: Sequence[Mapping[str, Any]]) -> Html | None:
    """Wrong generations by the class of their error, with an example of each."""
    classes = error_analysis.CLASSES
    wrong = [row for row in predictions if row.get("error") in classes]
    rows = []
    for name, meaning in classes.items():
        own = [row for row in wrong if row["error"] == name]
        if own:
            share = summary.percent(len(own) / len(wrong))
            rows.append([name, f"{len(own):,}", share, tag("code", own[0]["id"]), meaning])
    if not rows:
        return None
    caption = (
        "Why answers are wrong, as far as the equations of generation and teacher tell: the first "
        "class that applies. It is a best effort; what is calculated in words is not seen."
    )
    head = ["Error", "Count", "Share", "Example", "What it is"]
    return tag("div", table(head, rows, (1, 2)), tag("p", caption, class_="caption"))
