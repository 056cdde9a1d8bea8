"""Runs of a sweep without a model: their results and predictions, made up."""

import pathlib
from typing import Any

from configs import quickstart
from kpod_jax.config.defaults import Config
from kpod_jax.evaluation import intervals
from kpod_jax.utils import files


def config(method: str = "kpod", seed: int = 0, **changes: Any) -> Config:
    """A configuration; "schedule__beta=10.0" changes a key."""
    made = quickstart.get_config(method)
    made.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    made.seed = seed
    return made


def write(
    root: pathlib.Path,
    name: str,
    made: Config,
    right: str,
    ood: dict[str, str] | None = None,
    tokens: int | None = 1500,
) -> Config:
    """Leaves what a run leaves whose answers are right where `right` has a 1; gives its config."""
    found = {}
    for split, marks in {"test": right, **{f"{k}_test": v for k, v in (ood or {}).items()}}.items():
        rows = [
            {"id": f"q{i}", "question": f"{i} + 1?", "gold": str(i + 1), "correct": mark == "1",
             "prediction": f"It is {i}.", "extracted": str(i)}
            for i, mark in enumerate(marks)
        ]  # fmt: skip
        files.write_jsonl(root / name / "predictions" / f"{split}.jsonl", rows)
        correct, total = marks.count("1"), len(marks)
        found[split] = {
            "accuracy": correct / total, "correct": correct, "total": total,
            "interval": list(intervals.wilson_interval(correct, total)),
        }  # fmt: skip
    files.write_json(
        root / name / "results.json",
        {
            "method": made.method, "seed": made.seed, "split": "test", "checkpoint_step": 8,
            **({} if tokens is None else {"supervised_rationale_tokens": tokens}),
            **found["test"], "ood": {k: found[f"{k}_test"] for k in ood or {}},
        },
    )  # fmt: skip
    return made
