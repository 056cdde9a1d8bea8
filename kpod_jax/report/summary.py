"""The numbers of the report: everything that is computed, and nothing about how it looks."""

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
_MOST_GROUPS = 12  # That a chart has room for.


@dataclasses.dataclass(frozen=True)
class Method:
    """The runs of one method on one set of questions, as figures show them.

    Attributes:
      name: as tables call it.
      number: of its colour and its dashes.
      split: of the data set.
      accuracies: one a run, in [0, 1].
      mean: their mean.
      interval: (low, high): the run's own 95 % interval, or the mean of the runs' limits. As the
        questions are the same in all runs, it is of the questions' sampling, not of the seeds.
      total: number of questions of a run.
      curves: the rows of metrics.jsonl of each run that has them.
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
    """A single run, of what results.json holds."""
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
    """A name at the start of a line or a sentence."""
    return name[:1].upper() + name[1:]


def series(
    rows: Iterable[Mapping[str, Any]], stage: str, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """(steps [m], values [m]) of one metric of one stage; a resumed run's later rows win."""
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
    """Several curves of (steps, values) as (steps, mean, standard deviation), [m] each.

    Steps are the first curve's, as far as all reach; values between others' steps are interpolated.
    """
    low, high = max(x[0] for x, _ in each), min(x[-1] for x, _ in each)
    steps = each[0][0][(each[0][0] >= low) & (each[0][0] <= high)]
    values = np.asarray([np.interp(steps, x, y) for x, y in each])
    spread = values.std(axis=0, ddof=1) if len(each) > 1 else np.zeros(len(steps))
    return steps, values.mean(axis=0), spread


class PhaseRow(NamedTuple):
    """A phase of the training: its steps, mean c_i, loss, tokens and last validation accuracy."""

    number: int
    first: int
    last: int
    start_step: float
    loss: float
    tokens: float | None
    accuracy: float | None


def by_phase(rows: Iterable[Mapping[str, Any]]) -> list[PhaseRow]:
    """The phases of a training, from its rows of metrics.jsonl; those that say their phase."""
    groups: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    number = None
    for row in rows:
        if row.get("stage") == "distill":
            number = row.get("phase", row.get("stage_number", number))  # Its name before 0.2.0.
            if number is not None:
                groups[int(number)].append(row)
    found = []
    for number, group in sorted(groups.items()):
        losses = [row["loss"] for row in group if row.get("loss") is not None]
        if not losses:
            continue
        tokens = [row["supervised_tokens"] for row in group if row.get("supervised_tokens")]
        accuracies = [row["validation_accuracy"] for row in group if "validation_accuracy" in row]
        starts = [row["mean_start_step"] for row in group if "mean_start_step" in row]
        found.append(
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
    return found


def phase_starts(rows: Iterable[Mapping[str, Any]]) -> list[int]:
    """The steps after which more of the rationales is output than before."""
    phases = by_phase(rows)
    return [
        before.last
        for before, after in itertools.pairwise(phases)
        if after.start_step != before.start_step
    ]


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the `window` values around each one, fewer at the ends; [m] to [m]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - window // 2, 0), np.minimum(at + window // 2 + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


class WordMean(NamedTuple):
    """A word, its mean weight over all its occurrences, and how many these are."""

    word: str
    weight: float
    count: int


def word_means(
    records: Sequence[Record], spans: Ragged, weights: Ragged, each: int
) -> tuple[list[WordMean], list[WordMean], int]:
    """The `each` heaviest and lightest words; numbers count as one word, upper case as lower.

    Returns:
      (heaviest first, lightest first, fewest occurrences that a word needed to be listed). That is
      10, less where too few words occur as often.
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
    """A step of a rationale: its record, its number from 1, and its difficulty in nats."""

    record: Record
    number: int
    difficulty: float


def hardest_steps(records: Sequence[Record], difficulty: Ragged, count: int) -> list[HardStep]:
    """The `count` most difficult steps, hardest first."""
    order = np.argsort(-difficulty.values, kind="stable")[:count]
    example = np.searchsorted(difficulty.offsets, order, side="right") - 1
    return [
        HardStep(records[i], int(flat - difficulty.offsets[i]) + 1, float(difficulty.values[flat]))
        for flat, i in zip(order, example, strict=True)
    ]


def step_numbers(difficulty: Ragged) -> np.ndarray:
    """The number, from 1, of every step in its rationale: [number of steps] int64."""
    starts = np.repeat(difficulty.offsets[:-1], difficulty.lengths)
    return np.arange(len(difficulty.values)) - starts + 1


class Groups(NamedTuple):
    """Per group of values, [g]: its x, their mean, and limits around it, such as quartiles."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def grouped(x: np.ndarray, values: np.ndarray) -> Groups:
    """Groups `values` by `x`, both [m]; the smallest x, as many as a chart has room for."""
    kinds = np.unique(x)[:_MOST_GROUPS]
    parts = [values[x == kind] for kind in kinds]
    low, high = np.asarray([np.quantile(part, (0.25, 0.75)) for part in parts]).T
    return Groups(kinds, np.asarray([part.mean() for part in parts]), low, high)


def accuracy_by(x: np.ndarray, correct: np.ndarray) -> Groups:
    """Shares of `correct` by `x`, both [m], with Wilson's 95 % limits; as many x as `grouped`."""
    kinds = np.unique(x)[:_MOST_GROUPS]
    counts = [(int(correct[x == kind].sum()), int((x == kind).sum())) for kind in kinds]
    low, high = np.asarray([intervals.wilson_interval(*count) for count in counts]).T
    return Groups(kinds, np.asarray([right / total for right, total in counts]), low, high)


def verdict(run: Run) -> str:
    """How well the student answers, and the paper's figure where it has one."""
    if not run.results:
        return "This run has not been evaluated yet. The sections below show its output so far."
    result, name = run.results, capitalised(method_name(run.results["method"]))
    own = (
        f"{name}: the student answers {result['correct']:,} of "
        f"{result['total']:,} {result['split']} questions correctly, "
        f"{percent(result['accuracy'])} (95% interval {percent(*result['interval'])})."
    )
    tree = (run.config or {}).get("config", {})
    model, data = (tree.get(r, {}).get(k, "") for r, k in (("student", "model"), ("data", "name")))
    theirs = paper.accuracy(str(model), data, result["method"], data)
    if theirs is None:
        return own
    return f"{own} The paper reports {percent(theirs / 100)}, with its own teacher and splits."


def percent(*shares: float) -> str:
    """Shares of 1 as percentages: "62.4%" or, for two, "58.1–66.5%"."""
    return "–".join(f"{100 * share:.1f}" for share in shares) + "%"
