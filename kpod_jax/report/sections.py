"""The report's sections on results, training, schedule, generations and configuration.

A section is a function of the run (and of the methods compared) that gives None where its files are
not there. Those on tokens and steps are in `token_sections`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kpod_jax.report import evaluation, figures, summary
from kpod_jax.report.markup import Html, figure, join, section, table, tag, tiles
from kpod_jax.report.run import Run

_SHOWN = 6  # Generations of each kind.
_ENTERED = 3  # Examples that are named a stage.
_LONGEST = 1500  # Characters of a generation that are shown.


def results(run: Run, compared: Sequence[summary.Method]) -> Html | None:
    """The run's own accuracy, then the table and the figure of the methods compared."""
    parts: list[Html | None] = []
    if run.results:
        result = run.results
        half = (result["interval"][1] - result["interval"][0]) / 2
        parts.append(
            tiles(
                [
                    ("Accuracy", summary.percent(result["accuracy"]), f"± {100 * half:.1f} points"),
                    ("95 % interval", summary.percent(*result["interval"]), ""),
                    (
                        "Correct answers",
                        f"{result['correct']:,}",
                        f"of {result['total']:,} {result['split']} questions",
                    ),
                    ("Checkpoint", _steps([result["checkpoint_step"] or 0]), "training steps"),
                ]
            )
        )
        parts += evaluation.samples(result), evaluation.out_of_distribution(result)
    if compared:
        parts.append(_comparison(compared))
    return section("Results", *parts) if parts else None


def _comparison(compared: Sequence[summary.Method]) -> Html:
    several = len({method.split for method in compared}) > 1
    rows = []
    for i, method in enumerate(compared):
        dot = tag("i", class_="dot", style=f"background:var(--series-{i % len(figures.SERIES)})")
        spread = "" if method.spread is None else f" ± {100 * method.spread:.1f}"
        seeds = ", ".join("–" if seed is None else str(seed) for seed in method.seeds)
        rows.append(
            [
                join([dot, method.name]),
                *([method.split] if several else []),
                seeds,
                tag("b", f"{100 * method.mean:.1f}{spread}"),
                summary.percent(*method.interval),
                _steps(method.steps),
            ]
        )
    head = ["Method", *(["Split"] if several else []), "Seeds"]
    numeric = range(len(head), len(head) + 3)
    head += ["Accuracy (%)", "95 % interval", "Steps"]
    caption = (
        "Accuracy of the final answer: mean ± standard deviation over seeds. The interval is of "
        "the sampling of the questions; of several seeds, it is the mean of their limits."
    )
    body = tag("div", table(head, rows, numeric), tag("p", caption, class_="caption"))
    drawn = "Bars: mean accuracy. Lines: 95 % interval. Dots: single seeds."
    return tag(
        "div",
        body,
        figure(figures.accuracies(compared), "accuracy", drawn),
        class_="grid wide-left",
    )


def training(run: Run, compared: Sequence[summary.Method]) -> Html | None:
    """Loss and validation accuracy over the steps of distillation."""
    runs = [(m.name, i, rows) for i, m in enumerate(compared) for rows in m.curves]
    if not runs and run.metrics:
        runs = [("", 0, run.metrics)]

    def lines(key: str) -> list[figures.Curve]:
        found, named = [], set()
        for name, i, rows in runs:
            x, y = summary.series(rows, "distill", key)
            if len(x):
                found.append(figures.Curve(None if name in named else name or None, i, x, y))
                named.add(name)
        return found

    parts = []
    if loss := lines("loss"):
        drawing = figures.curves(loss, "Training loss", "nats per token", smooth=True)
        caption = (
            "Loss per supervised token (Eq. 15). While the schedule adds steps to the output, what "
            "is supervised changes: methods compare on this axis only after the schedule has ended."
        )
        parts.append(figure(drawing, "loss", caption))
    if accuracy := lines("validation_accuracy"):
        drawing = figures.curves(accuracy, "Validation accuracy", "correct answers", share=True)
        caption = "Accuracy of the final answer on validation questions, by greedy decoding."
        parts.append(figure(drawing, "validation", caption))
    return section("Training", tag("div", *parts, class_="grid")) if parts else None


def schedule(run: Run, compared: Sequence[summary.Method]) -> Html | None:
    """How rationales moved from the input to the output."""
    del compared
    if run.schedule is None or not run.schedule["start_steps"].any():
        return None  # Whole rationales from the start.
    start, clusters = run.schedule["start_steps"], run.schedule["clusters"]
    target = run.schedule.get("target")
    sizes = run.difficulty.lengths if run.difficulty is not None else start.max(axis=0)
    budget = " and the budget that it may not exceed (line, Eq. 10)" if target is not None else ""
    return section(
        "Progressive schedule",
        tag(
            "p",
            "Steps that are input stand before those that are output, and are not trained on. What "
            f"is output grows over {len(start)} stages.",
        ),
        tag(
            "div",
            figure(
                figures.start_steps(start, sizes),
                "start-steps",
                "Leading steps that are still input, cᵢ(t): mean of all examples, with the bands "
                "that hold half and four fifths of them.",
            ),
            figure(
                figures.schedule(target, run.schedule["remaining"]),
                "difficulty-target",
                f"Difficulty of all steps that are output (bars, Eq. 9){budget}.",
            ),
            figure(
                figures.input_steps(start, sizes),
                "input-steps",
                "Examples by how many of their steps are still input.",
            ),
            figure(
                figures.start_steps_by_cluster(start, clusters),
                "clusters",
                "Mean of cᵢ(t) in each cluster of questions; bands are one standard deviation.",
            ),
            class_="grid",
        ),
        _entries(run, start, sizes) if run.records else None,
    )


def _entries(run: Run, start_steps_TxN: np.ndarray, num_steps_N: np.ndarray) -> Html:
    """Which examples had more output at each stage than before, by cluster."""
    assert run.schedule is not None
    clusters = run.schedule["clusters"]
    kinds = np.unique(clusters)
    rows, before = [], num_steps_N
    for stage, start in enumerate(start_steps_TxN):
        moved = np.flatnonzero(start < before)
        counts = [f"{np.count_nonzero(clusters[moved] == k):,}" for k in kinds]
        some = ", ".join(run.records[i].id for i in moved[:_ENTERED])
        more = f" and {len(moved) - _ENTERED:,} more" if len(moved) > _ENTERED else ""
        rows.append([str(stage), f"{len(moved):,}", *counts, tag("code", some), more])
        before = start
    head = ["Stage", "Examples", *(f"Cluster {k + 1}" for k in kinds), "Which", ""]
    fold = tag("summary", "Which examples moved on at each stage")
    return tag("details", fold, table(head, rows, range(2 + len(kinds))))


def generations(run: Run, compared: Sequence[summary.Method]) -> Html | None:
    """Right and wrong generations beside the teacher's rationales."""
    del compared
    if not run.predictions:
        return None
    right = [row for row in run.predictions if row["correct"]]
    wrong = [row for row in run.predictions if not row["correct"]]
    cards = [_card(run, row) for row in (*wrong[:_SHOWN], *right[:_SHOWN])]
    return section(
        "Generations",
        tag(
            "p",
            f"The first {min(_SHOWN, len(wrong))} of {len(wrong):,} wrong and the first "
            f"{min(_SHOWN, len(right))} of {len(right):,} correct ones, in the order of the file.",
        ),
        evaluation.errors(run.predictions),
        *cards,
    )


def _card(run: Run, row: Mapping[str, Any]) -> Html:
    if row["correct"]:
        badge = tag("b", f"✓ {row['gold']}", class_="badge right")
    else:
        said = "no answer found" if row["extracted"] in (None, "") else str(row["extracted"])
        why = f" ({row['error']})" if row.get("error") else ""
        badge = tag("b", f"✗ {said}, expected {row['gold']}{why}", class_="badge wrong")
    output, more = str(row["prediction"]), ""
    if len(output) > _LONGEST:
        output, more = output[:_LONGEST], f" … {len(output) - _LONGEST:,} more characters"
    teacher = run.rationales.get(str(row["id"]), "")
    return tag(
        "article",
        tag("header", tag("code", row["id"]), badge),
        tag("p", row["question"], class_="question"),
        tag(
            "div",
            tag("div", tag("h3", "Teacher"), tag("p", teacher or "No rationale is stored.")),
            tag("div", tag("h3", "Student"), tag("p", output, tag("i", more, class_="muted"))),
            class_="pair",
        ),
        class_="card",
    )


def configuration(run: Run, compared: Sequence[summary.Method]) -> Html | None:
    """Every setting, one a row, behind a fold."""
    del compared
    if not run.config:
        return None
    rows = [[tag("code", key), tag("code", value)] for key, value in _flat(run.config)]
    fold = tag(
        "details",
        tag("summary", f"{len(rows)} settings, versions and devices of this run"),
        table(["Name", "Value"], rows, class_="settings"),
    )
    return section("Configuration", fold)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """("a.b.c", value) of every leaf of nested dicts."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(re.sub(r"\s+", " ", str(item)) for item in value)
    else:
        yield name, "–" if value is None else str(value)


def _steps(steps: Sequence[int]) -> str:
    low, high = min(steps), max(steps)
    if not high:
        return "–"
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"
