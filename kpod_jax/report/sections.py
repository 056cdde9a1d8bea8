"""The report's sections on results, training, schedule, generations and configuration.

A section is a function of the run that gives None where its files are not there. Those on tokens
and steps are in `token_sections`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kpod_jax.config import paper
from kpod_jax.report import evaluation, figures, summary
from kpod_jax.report.markup import Html, figure, search, section, table, tag, tiles
from kpod_jax.report.run import Run

_SHOWN = 6  # Generations of each kind.
_ENTERED = 3  # Examples that are named a stage.
_FOLDED = 30  # More of each kind, behind a fold.
_LONGEST = 1500  # Characters of a generation that are shown.


def results(run: Run) -> Html | None:
    """How well the student answers: its own questions, and those of other data sets."""
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
                    ("Checkpoint", f"{result['checkpoint_step'] or 0:,}", "training steps"),
                ]
            )
        )
        parts += evaluation.samples(result), evaluation.out_of_distribution(result)
    return section("Results", *parts) if parts else None


def training(run: Run, compared: Sequence[summary.Method] = ()) -> Html | None:
    """Loss and validation accuracy over the steps of distillation, of a run or of methods."""
    starts = [] if compared else summary.stage_starts(run.metrics)

    def lines(key: str) -> list[figures.Curve]:
        methods = [(m.name, m.number, m.curves) for m in compared] or [(None, 0, (run.metrics,))]
        found = []
        for name, number, runs in methods:
            each = [summary.series(rows, "distill", key) for rows in runs]
            if each := [(x, y) for x, y in each if len(x)]:
                x, mean, spread = summary.band(each)
                band = (mean - spread, mean + spread) if len(each) > 1 else None
                found.append(figures.Curve(name, number, x, mean, band))
        return found

    parts, seeds = [], any(len(m.curves) > 1 for m in compared)
    bands = " Lines are means over seeds, bands one standard deviation." if seeds else ""
    marks = " Dotted: where a stage begins that shows more steps." if starts else ""
    if loss := lines("loss"):
        drawing = figures.curves(
            loss, "Training loss", "nats per token", smooth=True, stages=starts
        )
        caption = (
            "Loss per supervised token (Eq. 15). While the schedule adds steps to the output, what "
            "is supervised changes: methods compare on this axis only after the schedule has "
            f"ended.{bands}{marks}"
        )
        parts.append(figure(drawing, "loss", caption))
    if accuracy := lines("validation_accuracy"):
        drawing = figures.curves(
            accuracy, "Validation accuracy", "correct answers", share=True, stages=starts
        )
        caption = (
            "Accuracy of the final answer on validation questions, by greedy decoding."
            f"{bands}{marks}"
        )
        parts.append(figure(drawing, "validation", caption))
    validated = [curve for curve in lines("validation_token_loss") if len(curve.x) > 1]
    if validated:
        drawing = figures.curves(validated, "Validation loss", "nats per token", stages=starts)
        caption = (
            "Loss per token of whole rationales and answers of validation questions, whatever the "
            f"schedule and the weights.{bands}{marks}"
        )
        parts.append(figure(drawing, "validation-loss", caption))
    if not parts:
        return None
    return section("Training", tag("div", *parts, class_="grid"), _by_stage(run, compared))


def _by_stage(run: Run, compared: Sequence[summary.Method]) -> Html | None:
    """What each stage of the schedule trained on and how it went, behind a fold."""
    rows = [] if compared else summary.by_stage(run.metrics)
    if len(rows) < 2:
        return None
    shown = [
        [
            f"{row.number}",
            f"{row.first:,}–{row.last:,}",
            f"{row.start_step:.2f}",
            f"{row.loss:.3f}",
            "" if row.tokens is None else f"{row.tokens:,.0f}",
            "" if row.accuracy is None else summary.percent(row.accuracy),
        ]
        for row in rows
    ]
    head = ["Stage", "Steps", "Mean cᵢ", "Mean loss", "Supervised tokens a step", "Validation"]
    fold = tag("summary", f"The {len(rows)} stages in figures")
    return tag("details", fold, table(head, shown, range(6)))


def schedule(run: Run) -> Html | None:
    """How rationales moved from the input to the output."""
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
            "Input steps stand before those that are output. Of them the first tokens alone are "
            "trained on, unless distill.step_start_weight=learned or they are in the encoder. What "
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


def generations(run: Run) -> Html | None:
    """Right and wrong generations beside the teacher's rationales."""
    if not run.predictions:
        return None
    right = [row for row in run.predictions if row["correct"]]
    wrong = [row for row in run.predictions if not row["correct"]]
    cards = [_card(run, row) for row in (*wrong[:_SHOWN], *right[:_SHOWN])]
    more = [
        _card(run, row)
        for row in (*wrong[_SHOWN : _SHOWN + _FOLDED], *right[_SHOWN : _SHOWN + _FOLDED])
    ]
    return section(
        "Generations",
        tag(
            "p",
            f"The first {min(_SHOWN, len(wrong))} of {len(wrong):,} wrong and the first "
            f"{min(_SHOWN, len(right))} of {len(right):,} correct ones, in the order of the file.",
        ),
        evaluation.errors(run.predictions),
        search("Search questions, rationales and generations")
        if len(run.predictions) > 1
        else None,
        *cards,
        tag("details", tag("summary", f"{len(more)} more"), *more) if more else None,
    )


def _card(run: Run, row: Mapping[str, Any]) -> Html:
    if row["correct"]:
        badge = tag("b", f"✓ {row['gold']}", class_="badge right")
    else:
        said = "no answer found" if row["extracted"] in (None, "") else str(row["extracted"])
        why = f" ({row['error']})" if row.get("error") else ""
        badge = tag("b", f"✗ {said}, expected {row['gold']}{why}", class_="badge wrong")
    teacher, id_ = run.judged.get(str(row["id"])), str(row["id"])
    rationale = teacher.rationale if teacher is not None and teacher.rationale else ""
    columns = [
        tag("div", tag("h3", "Teacher"), tag("p", rationale or "No rationale is stored.")),
        tag("div", tag("h3", "Student"), _cut(str(row["prediction"]))),
    ]
    if id_ in run.before:
        columns.append(tag("div", tag("h3", "Before distillation"), _cut(run.before[id_])))
    return tag(
        "article",
        tag("header", tag("code", row["id"]), badge),
        tag("p", row["question"], class_="question"),
        tag("div", *columns, class_="pair"),
        class_="card",
    )


def _cut(output: str) -> Html:
    """A generation, its end left out where it is very long."""
    more = ""
    if len(output) > _LONGEST:
        output, more = output[:_LONGEST], f" … {len(output) - _LONGEST:,} more characters"
    return tag("p", output or "Nothing was generated.", tag("i", more, class_="muted"))


def configuration(run: Run) -> Html | None:
    """What is not as in the paper; then every setting, one a row, behind a fold."""
    if not run.config:
        return None
    rows = [[tag("code", key), tag("code", value)] for key, value in _flat(run.config)]
    fold = tag(
        "details",
        tag("summary", f"{len(rows)} settings, versions and devices of this run"),
        table(["Name", "Value"], rows, class_="settings"),
    )
    return section("Configuration", _against_the_paper(run.config), fold)


def _against_the_paper(config: Mapping[str, Any]) -> Html | None:
    """The settings that the paper gives and this run has otherwise."""
    ours = dict(_flat(config.get("config", {})))
    if "student.model" not in ours or "data.name" not in ours:
        return None
    theirs = paper.settings(ours["student.model"], ours["data.name"])
    raw = _leaves(config["config"])
    known = [key for key in theirs if key in raw]
    rows = [
        [tag("code", key), tag("code", ours[key] or "–"), tag("code", str(theirs[key]))]
        for key in known
        if paper.differs(raw[key], theirs[key])
    ]
    student = paper.student(ours["student.model"])
    whose = f" for {student.name}" if student else ", whose students were larger"
    text = (
        f"{len(known) - len(rows)} of the {len(known)} settings that the paper gives{whose}, are "
        "the same here. These are not:"
    )
    shown = table(["Setting", "Here", "The paper"], rows, class_="settings") if rows else None
    return tag("div", tag("p", text if rows else text.partition(" These")[0]), shown)


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of nested dicts by its dotted name."""
    if not isinstance(value, Mapping):
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _leaves(inner, f"{name}.{key}" if name else str(key))
    return found


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """("a.b.c", value) of every leaf of nested dicts."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(re.sub(r"\s+", " ", str(item)) for item in value)
    else:
        yield name, "–" if value is None else str(value)
