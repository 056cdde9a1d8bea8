"""--mode=compare: compares runs question by question.

All runs answer the same questions, so their answers are paired, and a paired test detects
differences that two separate intervals hide. Each run is compared with the first.

Letters: n questions, k kinds of questions, where a kind is answered correctly by the same runs.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from kpod_jax.data import jsonl
from kpod_jax.evaluation import comparison, intervals
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.workdir import check_unchanged

RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Method:
    """One run, or several seeds of one method.

    Attributes:
      name: its name in tables.
      directories: one work directory per seed.
      rows: prediction rows by id, per seed, with question, gold and correct.
    """

    name: str
    directories: tuple[str, ...]
    rows: tuple[dict[str, dict[str, Any]], ...]

    @property
    def ids(self) -> set[str]:
        """Ids of the questions that every seed answered."""
        return set.intersection(*(set(rows) for rows in self.rows))

    def correct(self, ids: Sequence[str]) -> np.ndarray:
        """Returns which answers are correct, [seeds, n] bool."""
        return np.array([[rows[id_]["correct"] for id_ in ids] for rows in self.rows], bool)


def compare(
    runs: Sequence[str], split: str = "test", output: files.PathLike | None = None
) -> tuple[str, pathlib.Path]:
    """Compares runs with the first one; writes `comparison.json` and `comparison.md`.

    Args:
      runs: work directories; seeds of one method are joined by "+", as in "a-0+a-1".
      split: name of the file in `predictions/`, without its extension.
      output: folder for the two files; None for the first work directory.

    Returns:
      The comparison as Markdown, and the path of its file.

    Raises:
      UserError: if there are fewer than two runs, a file is missing or malformed, no question is
        common to all runs, a question or gold answer differs between runs, or a different kind of
        `comparison.json` would be overwritten.
    """
    if len(runs) < 2:
        raise UserError(
            "--mode=compare needs at least two work directories, as in --runs=runs/a,runs/b; join "
            "the seeds of one method by +, as in --runs=a-0+a-1,b-0+b-1."
        )
    methods = _read_methods(runs, split)
    folder = files.as_path(output or methods[0].directories[0])
    target = folder / "comparison.json"
    if target.exists() and "comparisons" not in files.read_json(target):
        raise UserError(
            f"{target} already exists and was not written by --mode=compare (perhaps by a sweep). "
            "It was left unchanged; choose a different folder with --output."
        )
    result = paired(methods, split)
    text = comparison.markdown(result)
    files.write_json(target, result)
    files.write_text(folder / "comparison.md", text)
    return text, folder / "comparison.md"


def paired(methods: Sequence[Method], split: str) -> dict[str, Any]:
    """Computes the contents of `comparison.json`, as plain values.

    Args:
      methods: two or more; each is compared with the first.
      split: the split of the rows.

    Raises:
      UserError: if no question is common to all methods, or a question or gold answer differs.
    """
    ids = _common_ids(methods, split)
    comparisons = [_pair(methods[0], other, ids) for other in methods[1:]]
    for row, adjusted in zip(comparisons, holm([row["p"] for row in comparisons]), strict=True):
        row["p_holm"] = adjusted
        row["verdict"] = comparison.verdict(row, len(ids))
    all_ids = set().union(*(set(rows) for method in methods for rows in method.rows))
    return {
        "split": split,
        "questions": len(ids),
        "resamples": RESAMPLES,
        "runs": [_summary(method, ids) for method in methods],
        "comparisons": comparisons,
        "missing": {
            directory: sorted(all_ids - rows.keys())
            for method in methods
            for directory, rows in zip(method.directories, method.rows, strict=True)
            if all_ids - rows.keys()
        },
    }


def interval(right: np.ndarray) -> list[float]:
    """Computes the 95% interval of an accuracy: Wilson's for one seed, bootstrap for several.

    Args:
      right: [seeds, n] bool, the correct answers.
    """
    if len(right) == 1:
        return list(intervals.wilson_interval(int(right.sum()), right.size))
    return np.quantile(resampled(right)[0] / right.size, [0.025, 0.975]).tolist()


def resampled(*rights: np.ndarray) -> np.ndarray:
    """Counts correct answers in bootstrap resamples of questions and seeds, [methods, RESAMPLES].

    Questions are resampled jointly for all methods, seeds independently for each. Questions that
    the same runs answer correctly are of the same kind. The number of draws per kind is
    multinomial, so [RESAMPLES, k] counts replace [RESAMPLES, n] indices. The random seed is fixed.

    Args:
      rights: correct answers per method, [seeds, n] bool, with n equal for all; the number of seeds
        may differ.
    """
    rng = np.random.default_rng(0)
    kinds, counts = np.unique(np.concatenate(rights).T, axis=0, return_counts=True)
    n = rights[0].shape[1]
    sums = rng.multinomial(n, counts / n, size=RESAMPLES) @ kinds
    ends = np.cumsum([len(right) for right in rights])[:-1]
    result = []
    for method_sums in np.split(sums, ends, axis=1):
        seeds = method_sums.shape[1]
        drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
        result.append((method_sums * drawn).sum(axis=1))
    return np.array(result)


def holm(p_values: Sequence[float]) -> list[float]:
    """Applies Holm's step-down correction; returns adjusted p-values in the given order."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    factors = np.arange(len(p), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return adjusted.tolist()


def _pair(a: Method, b: Method, ids: Sequence[str]) -> dict[str, Any]:
    right_a, right_b = a.correct(ids), b.correct(ids)
    # Use integers until the end, so that equal means differ by exactly 0.
    pairs = len(right_a) * len(right_b)
    sums = right_a.sum(axis=0) * len(right_b) - right_b.sum(axis=0) * len(right_a)
    differences = sums / pairs
    sums_a, sums_b = resampled(right_a, right_b)
    means = (sums_a * len(right_b) - sums_b * len(right_a)) / (pairs * len(ids))
    row: dict[str, Any] = {
        "a": a.name,
        "b": b.name,
        "seeds": [len(a.rows), len(b.rows)],
        "difference": float(differences.mean()),
        "interval": np.quantile(means, [0.025, 0.975]).tolist(),
        "mcnemar": None,
        "a_better": [id_ for id_, d in zip(ids, differences, strict=True) if d > 0],
        "b_better": [id_ for id_, d in zip(ids, differences, strict=True) if d < 0],
    }
    if len(a.rows) == len(b.rows) == 1:
        only_a, only_b = len(row["a_better"]), len(row["b_better"])
        both = int((right_a & right_b).sum())
        row["mcnemar"] = {
            "both": both,
            "only_a": only_a,
            "only_b": only_b,
            "neither": len(ids) - both - only_a - only_b,
        }
        # Exact for any number of discordant pairs; with none, p is 1.
        discordant = only_a + only_b
        row["p"] = float(stats.binomtest(only_a, discordant).pvalue) if discordant else 1.0
    else:
        # Twice the fraction of resamples on the rarer side of 0, smoothed so that p is never 0.
        rarer = min(int((means <= 0).sum()), int((means >= 0).sum()))
        row["p"] = min(1.0, 2 * (rarer + 1) / (RESAMPLES + 1))
    return row


def _summary(method: Method, ids: Sequence[str]) -> dict[str, Any]:
    right, n = method.correct(ids), len(ids)
    seeds = [
        {
            "directory": directory,
            "accuracy": int(row.sum()) / n,
            "correct": int(row.sum()),
            "interval": interval(row[None]),
        }
        for directory, row in zip(method.directories, right, strict=True)
    ]
    if len(seeds) == 1:
        return {"name": method.name, "seeds": seeds, **seeds[0]}
    return {
        "name": method.name,
        "seeds": seeds,
        "accuracy": float(right.mean()),
        "interval": interval(right),
    }


def _common_ids(methods: Sequence[Method], split: str) -> list[str]:
    """Returns the common ids, in the order of the first file, after checking their questions."""
    common = set.intersection(*(method.ids for method in methods))
    first = methods[0].rows[0]
    ids = [id_ for id_ in first if id_ in common]
    if not ids:
        raise UserError(
            f"No {split} question has the same id in all of "
            f"{', '.join(d for method in methods for d in method.directories)}, so there is "
            "nothing to compare. Choose runs that were evaluated on the same data."
        )
    for method in methods:
        for directory, rows in zip(method.directories, method.rows, strict=True):
            for id_ in ids:
                for key, what in (("question", "question"), ("gold", "gold answer")):
                    if rows[id_][key] != first[id_][key]:
                        raise UserError(
                            f"The {what} of {id_} differs between {methods[0].directories[0]} "
                            f"({first[id_][key]!r:.80}) and {directory} "
                            f"({rows[id_][key]!r:.80}). Expected runs that were evaluated on the "
                            "same data; run --mode=eval for both on the same data."
                        )
    return ids


def _read_methods(runs: Sequence[str], split: str) -> list[Method]:
    groups = [[run] if pathlib.Path(run).is_dir() else run.split("+") for run in runs]
    if not all(part for group in groups for part in group):
        raise UserError(f"--runs={','.join(runs)} contains an empty directory name.")
    names = ["+".join(pathlib.Path(part).resolve().name for part in group) for group in groups]
    if len(set(names)) < len(names):
        names = list(runs)  # The last path components are not unique.
    return [
        Method(name, tuple(group), tuple(read_rows(part, split) for part in group))
        for name, group in zip(names, groups, strict=True)
    ]


def read_rows(directory: str, split: str) -> dict[str, dict[str, Any]]:
    """Reads the rows of a run's `predictions/SPLIT.jsonl`, by id.

    Raises:
      UserError: if the file is missing, empty or was changed, a row lacks a required column, or an
        id is repeated.
    """
    path = files.as_path(directory) / "predictions" / f"{split}.jsonl"
    if not path.is_file():
        available = ", ".join(sorted(p.stem for p in path.parent.glob("*.jsonl"))) or "none"
        raise UserError(
            f"No such file: {path}. Run --mode=eval in that work directory, or choose a different "
            f"--split; available: {available}."
        )
    check_unchanged(directory, "eval", [f"predictions/{split}.jsonl"])
    rows: dict[str, dict[str, Any]] = {}
    for number, row, problem in jsonl.read_rows(path):
        missing = [key for key in ("id", "question", "gold", "correct") if key not in (row or {})]
        if row is None or missing:
            what = problem or f"has no {missing[0]!r}"
            raise UserError(f"{path}:{number} {what}. {files.remedy('eval')}")
        id_ = str(row["id"])
        if id_ in rows or not isinstance(row["correct"], bool):
            what = "is repeated" if id_ in rows else "has a 'correct' that is not true or false"
            raise UserError(f"{path}:{number} {id_} {what}. {files.remedy('eval')}")
        rows[id_] = row
    if not rows:
        raise UserError(f"{path} contains no predictions. {files.remedy('eval')}")
    return rows
