"""Computes the numbers of the report, independent of their presentation."""

import dataclasses
import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kpod_jax.config import paper
from kpod_jax.config.defaults import method_name
from kpod_jax.data.records import Ragged, Record
from kpod_jax.evaluation import intervals
from kpod_jax.report import heatmap
from kpod_jax.report.run import Run

NUMBER = "‹any number›"
_MAX_GROUPS = 12  # Per chart.


@dataclasses.dataclass(frozen=True)
class Method:
    """The runs of one method on one set of questions, as shown in figures.

    Attributes:
      name: name in tables.
      number: number of its color and dashes.
      split: split of the data set.
      accuracies: accuracy of each run, in [0, 1].
      mean: their mean.
      interval: (low, high) of the mean at 95%, over questions and, with several runs, over runs.
      total: number of questions per run.
      curves: rows of metrics.jsonl of each run that has them.
    """

    name: str
    number: int
    split: str
    accuracies: tuple[float, ...]
    mean: float
    interval: tuple[float, float]
    total: int
    curves: tuple[tuple[dict[str, Any], ...], ...] = ()


def method(result: Mapping[str, Any], number: int = 0) -> Method:
    """Returns the method of a single run, given the contents of results.json."""
    low, high = result["interval"]
    return Method(
        name=capitalised(method_name(result["method"])),
        number=number,
        split=result["split"],
        accuracies=(result["accuracy"],),
        mean=result["accuracy"],
        interval=(low, high),
        total=result["total"],
    )


def capitalised(name: str) -> str:
    """Capitalizes a name for the start of a line or sentence."""
    return name[:1].upper() + name[1:]


def series(
    rows: Iterable[Mapping[str, Any]], stage: str, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps [m], values [m]) of a stage's metric; later rows of a resumed run win."""
    values = {
        int(row["step"]): float(row[key])
        for row in rows
        if row.get("stage") == stage and row.get(key) is not None and "step" in row
    }
    steps = sorted(values)
    return np.asarray(steps, np.int64), np.asarray([values[step] for step in steps], np.float64)


def band(
    each: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Combines curves of (steps, values) into (steps, mean, standard deviation), [m] each.

    The steps are those of the first curve that all curves cover; other curves are interpolated.
    """
    low, high = max(x[0] for x, _ in each), min(x[-1] for x, _ in each)
    steps = each[0][0][(each[0][0] >= low) & (each[0][0] <= high)]
    values = np.asarray([np.interp(steps, x, y) for x, y in each])
    spread = values.std(axis=0, ddof=1) if len(each) > 1 else np.zeros(len(steps))
    return steps, values.mean(axis=0), spread


class PhaseRow(NamedTuple):
    """A training phase: its steps, mean c_i, loss, tokens and last validation accuracy."""

    number: int
    first: int
    last: int
    start_step: float
    loss: float
    tokens: float | None
    accuracy: float | None


def by_phase(rows: Iterable[Mapping[str, Any]]) -> list[PhaseRow]:
    """Returns the phases of a training from the rows of metrics.jsonl that name a phase."""
    groups: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    number = None
    for row in rows:
        if row.get("stage") == "distill":
            number = row.get("phase", row.get("stage_number", number))  # Its name before 0.2.0.
            if number is not None:
                groups[int(number)].append(row)
    phases = []
    for number, group in sorted(groups.items()):
        losses = [row["loss"] for row in group if row.get("loss") is not None]
        if not losses:
            continue
        tokens = [row["supervised_tokens"] for row in group if row.get("supervised_tokens")]
        accuracies = [row["validation_accuracy"] for row in group if "validation_accuracy" in row]
        starts = [row["mean_start_step"] for row in group if "mean_start_step" in row]
        phases.append(
            PhaseRow(
                number,
                int(group[0]["step"]),
                int(group[-1]["step"]),
                float(starts[0]) if starts else 0.0,
                statistics.fmean(losses),
                statistics.fmean(tokens) if tokens else None,
                float(accuracies[-1]) if accuracies else None,
            )
        )
    return phases


def phase_starts(rows: Iterable[Mapping[str, Any]]) -> list[int]:
    """Returns the steps after which the mean c_i changes."""
    phases = by_phase(rows)
    return [
        before.last
        for before, after in itertools.pairwise(phases)
        if after.start_step != before.start_step
    ]


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Returns the mean of `window` values around each one, fewer at the ends; [m] to [m]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - window // 2, 0), np.minimum(at + window // 2 + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


class WordMean(NamedTuple):
    """A word, its mean weight and its number of occurrences."""

    word: str
    weight: float
    count: int


def word_means(
    records: Sequence[Record], spans: Ragged, weights: Ragged, each: int
) -> tuple[list[WordMean], list[WordMean], int]:
    """Returns the `each` heaviest and lightest words, ignoring case; all numbers are one word.

    Returns:
      (heaviest first, lightest first, minimum number of occurrences of the listed words). The
      minimum is 10, or less if too few words occur that often.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for i, record in enumerate(records):
        text = record.rationale
        for word in heatmap.words(text, spans[i], weights[i]):
            name = text[word.start : word.end].lower()
            entry = sums[NUMBER if name[0].isdecimal() else name]
            entry[0] += word.weight
            entry[1] += 1
    means: list[WordMean] = []
    fewest = 1
    for fewest in (10, 3, 1):
        means = [WordMean(w, s / int(c), int(c)) for w, (s, c) in sums.items() if c >= fewest]
        if len(means) >= 2 * each:
            break
    means.sort(key=lambda mean: (-mean.weight, mean.word))
    each = min(each, (len(means) + 1) // 2)
    return means[:each], means[each:][::-1][:each], fewest


class HardStep(NamedTuple):
    """A step of a rationale: record, number from 1, and difficulty in nats."""

    record: Record
    number: int
    difficulty: float


def hardest_steps(records: Sequence[Record], difficulty: Ragged, count: int) -> list[HardStep]:
    """Returns the `count` most difficult steps, hardest first."""
    order = np.argsort(-difficulty.values, kind="stable")[:count]
    example = np.searchsorted(difficulty.offsets, order, side="right") - 1
    return [
        HardStep(records[i], int(flat - difficulty.offsets[i]) + 1, float(difficulty.values[flat]))
        for flat, i in zip(order, example, strict=True)
    ]


def step_numbers(difficulty: Ragged) -> np.ndarray:
    """Returns the number, from 1, of every step in its rationale: [number of steps] int64."""
    starts = np.repeat(difficulty.offsets[:-1], difficulty.lengths)
    return np.arange(len(difficulty.values)) - starts + 1


class Groups(NamedTuple):
    """Groups of values, [g] each: x, mean, and limits around the mean, such as quartiles."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def grouped(x: np.ndarray, values: np.ndarray) -> Groups:
    """Groups `values` by `x`, both [m], keeping the smallest `_MAX_GROUPS` values of x."""
    keys = np.unique(x)[:_MAX_GROUPS]
    parts = [values[x == key] for key in keys]
    low, high = np.asarray([np.quantile(part, (0.25, 0.75)) for part in parts]).T
    return Groups(keys, np.asarray([part.mean() for part in parts]), low, high)


def accuracy_by(x: np.ndarray, correct: np.ndarray) -> Groups:
    """Groups `correct` by `x`, as `grouped` does, into accuracies with 95% Wilson limits."""
    keys = np.unique(x)[:_MAX_GROUPS]
    counts = [(int(correct[x == key].sum()), int((x == key).sum())) for key in keys]
    low, high = np.asarray([intervals.wilson_interval(*count) for count in counts]).T
    return Groups(keys, np.asarray([right / total for right, total in counts]), low, high)


def title(run: Run) -> str:
    """Returns the method and the student, such as "KPOD: flan-t5-base on gsm8k"."""
    tree = (run.config or {}).get("config", {})
    model, data = (tree.get(r, {}).get(k, "") for r, k in (("student", "model"), ("data", "name")))
    method = method_name(str(tree.get("method", ""))) or run.directory.resolve().name
    subject = " on ".join(filter(None, (str(model).rstrip("/").rpartition("/")[2], str(data))))
    return f"{capitalised(method)}: {subject}" if subject else capitalised(method)


def facts(run: Run) -> list[str]:
    """Returns when, where and for how long a run ran."""
    values = run.config or {}
    found = [str(values[key]) for key in ("date", "device") if values.get(key)]
    return [*found, duration(run.seconds)] if run.seconds else found


def duration(seconds: float) -> str:
    """Formats a time as "40 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def overview(run: Run) -> str:
    """Returns what the student was trained on, its result, and what weights and schedule do."""
    tree = (run.config or {}).get("config", {})
    steps = (run.results or {}).get("checkpoint_step")
    sentences = []
    if run.records and steps:
        sentences.append(
            f"The student was trained on {len(run.records):,} rationales for {steps:,} steps."
        )
    sentences.append(verdict(run))
    parts = []
    if run.weights is not None and len(run.weights.values):
        parts.append(f"the learned token weights average {run.weights.values.mean():.2f}")
    if run.schedule is not None and run.schedule["start_steps"].any():
        start = run.schedule["start_steps"]
        whole = int((start.max(axis=1) > 0).sum())
        written = "the whole training" if whole == len(start) else f"phase {whole} of {len(start)}"
        parts.append(f"the schedule holds back first steps until {written}")
    if parts and tree:
        sentences.append(capitalised(" and ".join(parts)) + ".")
    return " ".join(sentences)


def verdict(run: Run) -> str:
    """Returns a sentence on the student's accuracy, and the paper's accuracy if it reports one."""
    if not run.results:
        return "This run has not been evaluated yet. The sections below show its output so far."
    result, name = run.results, capitalised(method_name(run.results["method"]))
    measured = (
        f"{name}: the student answers {result['correct']:,} of "
        f"{result['total']:,} {result['split']} questions correctly, "
        f"{percent(result['accuracy'])} (95% interval {percent(*result['interval'])})."
    )
    tree = (run.config or {}).get("config", {})
    model, data = (tree.get(r, {}).get(k, "") for r, k in (("student", "model"), ("data", "name")))
    published = paper.accuracy(str(model), data, result["method"], data)
    if published is None:
        return measured
    return (
        f"{measured} The paper reports {percent(published / 100)}, with another teacher and other "
        "splits."
    )


def percent(*shares: float) -> str:
    """Formats fractions as percentages: "62.4%" or, for two, "58.1–66.5%"."""
    return "–".join(f"{100 * share:.1f}" for share in shares) + "%"
