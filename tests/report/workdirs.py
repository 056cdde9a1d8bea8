"""A small work directory with every file that the report reads, made without a model."""

import pathlib
import re
from typing import Any

import numpy as np

from kpod_jax.data.records import Ragged, Record
from kpod_jax.utils import files

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/a.png onerror=alert(1)>"


def records(count: int = 12) -> list[Record]:
    """Records with known keypoints (their numbers) and hardness (1, then 2, then 3)."""
    made = []
    for i in range(count):
        a, b = 3 + i % 7, 2 + i % 5
        steps = (
            f"First, Anna has {a} bags & each holds {b} nuts. ",
            f"So she has {a} times {b} = {a * b} nuts in all. ",
            f"Then she buys 3.5 dozen more, that makes {a * b + 42} nuts.",
        )
        question = f"Anna has {a} bags of {b} nuts and buys 3.5 dozen. How many nuts has she?"
        keys = [m.span() for m in re.finditer(r"\d+(?:\.\d+)?|times|dozen", "".join(steps))]
        made.append(
            Record(f"train-{i}", question, steps, str(a * b + 42), tuple(keys), (1.0, 2.0, 3.0))
        )
    return made


def token_spans(text: str) -> list[tuple[int, int]]:
    """Pieces of at most three letters, or one digit or sign, as a subword tokenizer might cut."""
    return [match.span() for match in re.finditer(r"[^\W\d_]{1,3}|\d|[^\w\s]", text)]


def build(root: pathlib.Path, *, seed: int = 0, accuracy: int = 31) -> pathlib.Path:
    """Writes all files of a finished run below `root`."""
    rng = np.random.default_rng(seed)
    train = records()
    test = [Record(f"test-{i}", r.question, r.steps, r.answer) for i, r in enumerate(records(8))]
    hostile = Record("test-<b>", f"{HOSTILE} How many?", (f"{HOSTILE} It is 1.",), "1")
    rows = [*test, hostile]
    files.write_json(
        root / "config.json",
        {"config": {"student": {"model": "t5-small"}, "note": HOSTILE, "alpha": 0.5, "lr": None},
         "versions": {"jax": "0.10.2"}, "devices": ["cpu:0", "cpu:1"]},
    )  # fmt: skip
    files.write_jsonl(root / "records" / "train.jsonl", [r.to_json() for r in train])
    files.write_jsonl(root / "records" / "test.jsonl", [r.to_json() for r in rows])
    spans = Ragged.from_list([token_spans(r.rationale) for r in train], np.int32)
    keyed = np.concatenate(
        [
            [any(a < e and s < b for s, e in r.keypoints or ()) for a, b in spans[i]]
            for i, r in enumerate(train)
        ]
    )
    raw = np.where(keyed, 1.4, -1.6) + rng.normal(0, 0.6, len(keyed))
    weights = (1 / (1 + np.exp(-raw))).astype(np.float32)
    files.write_npz(root / "token_spans.npz", values=spans.values, offsets=spans.offsets)
    files.write_npz(root / "token_weights.npz", values=weights, offsets=spans.offsets)
    hard = np.concatenate([r.hardness or () for r in train])
    difficulty = (hard * 0.6 + rng.gamma(2, 0.2, len(hard))).astype(np.float32)
    offsets = np.arange(0, len(hard) + 1, 3)
    files.write_npz(root / "step_difficulty.npz", values=difficulty, offsets=offsets)
    start = np.clip(3 - np.arange(6)[:, None] + np.arange(12)[None] % 2, 0, 3).astype(np.int32)
    start[-1] = 0
    remaining = np.asarray(
        [sum(difficulty[3 * i + c : 3 * i + 3].sum() for i, c in enumerate(row)) for row in start]
    )
    target = np.minimum(remaining * 1.04 + 0.1, difficulty.sum())
    files.write_npz(
        root / "schedule.npz",
        start_steps=start,
        target=target,
        remaining=remaining,
        clusters=np.zeros(12, np.int32),
    )
    files.write_json(
        root / "weighting.json",
        {"gap": {"none_masked": 0.31, "all_masked": 2.4}, "auc": 0.93, "mean_weight": 0.34,
         "objective": 0.52, "keep_all": 0.81, "keep_none": 2.4},
    )  # fmt: skip
    steps = np.arange(10, 3001, 10)
    metrics: list[dict[str, Any]] = [
        {
            "stage": "weigh",
            "step": int(s),
            "answer_loss": 0.5 + float(np.exp(-s / 300)),
            "mean_weight": 0.34 + 0.3 * float(np.exp(-s / 500)),
        }
        for s in steps
    ]
    metrics += [
        {"stage": "distill", "step": int(s), "learning_rate": 1e-4,
         "loss": 0.3 + 2 * float(np.exp(-s / 700)) + float(rng.normal(0, 0.05))}
        for s in steps
    ]  # fmt: skip
    metrics += [
        {
            "stage": "distill",
            "step": s,
            "validation_accuracy": accuracy / 50 * (1 - 2 ** (-s / 600)),
        }
        for s in range(300, 3001, 300)
    ]
    files.write_jsonl(root / "metrics.jsonl", metrics)
    files.write_jsonl(
        root / "predictions" / "test.jsonl", [prediction(r, i) for i, r in enumerate(rows)]
    )
    files.write_json(root / "results.json", results("kpod", seed, accuracy))
    return root


def prediction(record: Record, index: int) -> dict[str, Any]:
    """What the student said; every third is wrong, and the hostile record's has no answer."""
    right = index % 3 != 2
    said = record.answer if right else "17"
    return {
        "id": record.id, "question": record.question, "gold": record.answer, "correct": right,
        "prediction": f"{record.rationale} Therefore, the answer is {said}.", "extracted": said,
    }  # fmt: skip


def results(method: str, seed: int, correct: int, **more: Any) -> dict[str, Any]:
    """A results.json of 50 questions."""
    share = correct / 50
    return {
        "method": method, "seed": seed, "split": "test", "accuracy": share, "correct": correct,
        "total": 50, "interval": [max(share - 0.13, 0), min(share + 0.13, 1)],
        "checkpoint_step": 0 if method == "none" else 3000, **more,
    }  # fmt: skip
