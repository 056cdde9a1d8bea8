r"""Time and peak memory of the stages on the host, from 10,000 to 1,000,000 records.

    python -m benchmarks.records                    # prints a table
    python -m benchmarks.records --only=10000       # of these sizes
    python -m benchmarks.records --write            # and updates docs/scale.md

Records are procedural word problems in a JSONL file; the student is a T5 of one layer with random
weights, on this machine's CPU. Each stage is a process of its own.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from absl import app, flags

from benchmarks import tables

_STAGES = flags.DEFINE_list("stages", ["rationales", "score", "schedule"], "Stages to run.")
_SIZES = ("10000", "100000", "1000000")
_HELD_OUT = 500
_STUDENT = {
    "model_type": "t5",
    "vocab_size": 832,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 4,
    "feed_forward_proj": "relu",
}
_NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Henry")
_THINGS = ("pens", "apples", "cards", "shells", "books", "stamps", "cups")


def record(number: int) -> dict[str, str]:
    """Returns the record of a number; all questions differ."""
    name, thing = _NAMES[number % len(_NAMES)], _THINGS[number % len(_THINGS)]
    a, b, c = number + 10, number % 89 + 2, number % 7 + 2
    question = (
        f"{name} has {a} {thing}. A friend gives {name} {b} more {thing}, and then {name} buys {c} "
        f"boxes with 6 {thing} in each. How many {thing} does {name} have in the end?"
    )
    rationale = (
        f"At first, {name} has {a} {thing}. With those from the friend it is {a} + {b} = {a + b}. "
        f"The boxes hold {c} * 6 = {c * 6} {thing}. So in the end {name} has {a + b} + {c * 6} = "
        f"{a + b + c * 6} {thing}."
    )
    return {"question": question, "rationale": rationale, "answer": str(a + b + c * 6)}


def write_data(folder: pathlib.Path, count: int) -> None:
    """Writes a student and three splits, of which the first has `count` records."""
    (folder / "student.json").write_text(json.dumps(_STUDENT))
    start = 0
    for split, size in (("train", count), ("validation", _HELD_OUT), ("test", _HELD_OUT)):
        with (folder / f"{split}.jsonl").open("w") as file:
            file.writelines(json.dumps(record(start + i)) + "\n" for i in range(size))
        start += size


def run_stage(stage: str, data: pathlib.Path, workdir: pathlib.Path) -> tuple[float, float]:
    """Returns seconds and peak memory in GB of a process that runs a stage."""
    start = time.monotonic()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "kpod_jax", "--config=configs/quickstart.py"),
            *(f"--workdir={workdir}", f"--mode={stage}"),
            *("--config.data.name=jsonl", f"--config.data.path={data}"),
            *("--config.data.train_examples=0", "--config.schedule.phase_steps=0"),
            *("--config.student.init=random", f"--config.student.model={data}/student.json"),
            "--config.student.tokenizer=kpod_jax/assets/tiny_t5",
            *("--config.weighting.weights=uniform", "--config.difficulty.batch_size=256"),
        ],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{stage} failed.")
    return time.monotonic() - start, usage.ru_maxrss * 1024 / 1e9


def rows_of(size: int) -> Iterator[str]:
    """Yields the rows of a size."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        root = pathlib.Path(folder)
        write_data(root, size)
        for stage in _STAGES.value:
            seconds, memory = run_stage(stage, root, root / "run")
            yield f"| {size:,} | {stage} | {seconds:.0f} | {memory:.2f} |"


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    rows = ["| records | stage | seconds | peak memory, GB |", "| --- | --- | --- | --- |"]
    print("\n".join(rows))
    for size in tables.only(_SIZES) or _SIZES:
        for row in rows_of(int(size)):
            print(row, flush=True)
            rows.append(row)
    if tables.WRITE.value:
        tables.put("docs/scale.md", "records", rows)


if __name__ == "__main__":
    app.run(main)
