"""The report's sections on token weights and step difficulties."""

from collections.abc import Sequence

import numpy as np

from kpod_jax.data import known
from kpod_jax.data.records import Record
from kpod_jax.report import figures, heatmap, summary
from kpod_jax.report.markup import Html, figure, search, section, table, tag, tiles
from kpod_jax.report.run import Run

_SHOWN = 4  # Rationales as heat maps.
_FOLDED = 60  # With those behind a fold.
_EACH = 12  # Heaviest and lightest words.


def token_weights(run: Run) -> Html | None:
    """How the weighting ended: its numbers, the histogram, the heaviest and the lightest words."""
    if run.weights is None and run.weighting is None:
        return None
    parts, columns = [_weighting(run)], []
    if run.weights is not None and len(run.weights.values):
        keypoint = None
        if run.spans is not None:
            keypoint = known.keypoint_tokens(run.records, run.spans)
        labelled = keypoint is not None
        caption = "Weights of all rationale tokens of the training set." + (
            " Known keypoints and filler each make 100 %." if labelled else ""
        )
        columns.append(figure(figures.weights(run.weights.values, keypoint), "weights", caption))
    # Rows without a mean weight are of the answerer, before masks are learned.
    rows = [row for row in run.metrics if row.get("mean_weight") is not None]
    for key, title, unit, caption in (
        ("answer_loss", "Answer's loss", "Lₚ in nats", "Loss of the answer from what is kept"),
        ("mean_weight", "Mean weight", "mean of wⱼ", "Share of the tokens that is kept"),
    ):
        x, y = summary.series(rows, "weigh", key)
        if len(x):
            drawing = figures.curves([figures.Curve(None, 0, x, y)], title, unit, smooth=True)
            columns.append(figure(drawing, key, f"{caption}, while masks are learned (Eq. 7)."))
    parts.append(_grid(columns) if columns else None)
    if run.records and run.spans is not None and run.weights is not None:
        parts.append(_words(run.records, run))
    return section("Token weights", *parts)


def _weighting(run: Run) -> Html | None:
    state = run.weighting or {}
    shown = []
    if state.get("auc") is not None:
        shown.append(("AUC", f"{state['auc']:.3f}", "keypoints against filler; 0.5 is chance"))
    mean = state.get("mean_weight")
    if mean is None and run.weights is not None and len(run.weights.values):
        mean = float(run.weights.values.mean())
    if mean is not None:
        shown.append(("Mean weight", f"{mean:.3f}", "of all rationale tokens"))
    if gap := state.get("gap"):
        value = f"{gap['none_masked']:.2f} → {gap['all_masked']:.2f}"
        shown.append(("Answer's loss", value, "nothing masked → all masked"))
    if state.get("objective") is not None:
        others = [
            f"{name} {state[key]:.3f}"
            for key, name in (("keep_all", "keep all"), ("keep_none", "keep none"))
            if state.get(key) is not None
        ]
        shown.append(("Objective (Eq. 7)", f"{state['objective']:.3f}", ", ".join(others)))
    return tiles(shown) if shown else None


def _words(records: Sequence[Record], run: Run) -> Html | None:
    assert run.spans is not None and run.weights is not None
    heavy, light, fewest = summary.word_means(records, run.spans, run.weights, _EACH)
    if not heavy:
        return None

    def column(title: str, means: Sequence[summary.WordMean]) -> Html:
        rows = [
            [
                tag("span", mean.word, class_=f"word h{heatmap.level(mean.weight)}"),
                tag("meter", value=f"{mean.weight:.3f}", min=0, max=1, aria_hidden="true"),
                f"{mean.weight:.2f}",
                f"{mean.count:,}",
            ]
            for mean in means
        ]
        return tag("div", tag("h3", title), table(["Word", "", "Mean", "Times"], rows, (2, 3)))

    often = f" that occur at least {fewest} times," if fewest > 1 else ""
    caption = (
        f"Words of the training rationales{often} by mean weight. Word pieces are merged, upper "
        "and lower case too, and all numbers count as one word."
    )
    return tag(
        "div",
        tag("div", column("Heaviest", heavy), column("Lightest", light), class_="grid"),
        tag("p", caption, class_="caption"),
    )


def rationales(run: Run) -> Html | None:
    """A few rationales with their words coloured by weight."""
    if run.weights is None or run.spans is None or not run.records:
        return None
    indices = spread(len(run.records), _SHOWN)
    more = [i for i in spread(len(run.records), _FOLDED) if i not in indices]
    chosen = "spread evenly over the data set and not otherwise chosen"
    which = f"{len(indices)} training examples, {chosen}."
    return chosen_rationales(run, indices, which, more)


def spread(count: int, shown: int) -> list[int]:
    """At most `shown` indices of `count` things, evenly from the first to the last."""
    shown = min(shown, count)
    return np.linspace(0, count - 1, shown).round().astype(int).tolist()


def chosen_rationales(
    run: Run, indices: Sequence[int], which: str, more: Sequence[int] = ()
) -> Html:
    """The heat maps of some rationales, and of more behind a fold; `which` says why these."""
    known = any(run.records[i].keypoints for i in indices)
    beside = " At the right, the difficulty dₖ of each step in nats." if run.difficulty else ""
    return section(
        "What the weighting keeps",
        tag("p", f"{which} The ground of a word is its weight wⱼ.{beside}"),
        Html(heatmap.legend_html(known)),
        search("Search questions and rationales") if len(indices) + len(more) > 1 else None,
        *(_rationale(run, i) for i in indices),
        tag("details", tag("summary", f"{len(more)} more"), *(_rationale(run, i) for i in more))
        if more
        else None,
    )


def _rationale(run: Run, index: int) -> Html:
    assert run.weights is not None and run.spans is not None
    record, spans, weights = run.records[index], run.spans[index], run.weights[index]
    lines, start = [], 0
    for number, step in enumerate(record.steps):
        end = start + len(step)
        inside = (spans[:, 1] > start) & (spans[:, 0] < end)
        shifted = np.clip(spans[inside], start, end) - start
        keys = [(max(a - start, 0), b - start) for a, b in record.keypoints or () if b > start]
        text = heatmap.heat_map_html(step.rstrip(), shifted, weights[inside], keys)
        difficulty = None
        if run.difficulty is not None:
            value = f"{run.difficulty[index][number]:.2f}"
            difficulty = tag("span", value, class_="nats", title="difficulty in nats")
        lines.append(tag("li", tag("div", Html(text), difficulty, class_="line")))
        start = end
    answer = tag("p", "Answer: ", tag("b", record.answer), class_="answer")
    return tag(
        "article",
        tag("header", tag("code", record.id)),
        tag("p", record.question, class_="question"),
        tag("ol", *lines),
        answer,
        class_="card",
    )


def difficulties(run: Run) -> Html | None:
    """Which steps the student found hard before distillation."""
    if run.difficulty is None or not len(run.difficulty.values):
        return None
    values = run.difficulty.values.astype(np.float64)
    columns = [
        figure(
            figures.difficulties(values),
            "difficulties",
            f"All {len(values):,} steps; the last bar holds the hardest hundredth as well.",
        ),
        figure(
            figures.by_group(
                summary.grouped(summary.step_numbers(run.difficulty), values),
                "Difficulty by position",
                "step of the rationale",
            ),
            "position",
            "Mean difficulty of the first, second, … step; bars span the middle half.",
        ),
    ]
    hardness = known.hardness(run.records)
    rho = known.rank_correlation(hardness, values) if hardness is not None else None
    if hardness is not None and rho is not None:
        drawing = figures.by_group(
            summary.grouped(hardness, values),
            "Difficulty by known hardness",
            "hardness of the step",
        )
        caption = (
            f"Against the hardness that the task defines: Spearman's ρ = {rho:.2f}. Dots are "
            "means, bars span the middle half."
        )
        columns.append(figure(drawing, "hardness", caption))
    parts = [_grid(columns)]
    if run.records:
        rows = [
            [
                f"{step.difficulty:.2f}",
                tag("code", step.record.id),
                f"{step.number} of {len(step.record.steps)}",
                step.record.steps[step.number - 1].strip(),
            ]
            for step in summary.hardest_steps(run.records, run.difficulty, 10)
        ]
        parts.append(tag("h3", "The hardest steps"))
        parts.append(table(["dₖ", "Example", "Step", "Text"], rows, (0,), class_="steps"))
    return section(
        "Step difficulty",
        tag(
            "p",
            "What each step costs the student before distillation: the negative log probability of "
            "its tokens, weighted by their share of the step's weight (Eq. 8).",
        ),
        *parts,
    )


def _grid(columns: Sequence[Html]) -> Html:
    """Figures side by side, where the page is wide enough."""
    return tag("div", *columns, class_="grid three" if len(columns) > 2 else "grid")
