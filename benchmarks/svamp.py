r"""SVAMP with a teacher's rationales: data and figures of `configs/sweeps/smollm2_svamp.py`.

    python -m benchmarks.svamp --source=DIR --target=FOLDER    # writes the data
    python -m benchmarks.svamp --run=DIR                       # measures a finished run

`--source` has `SVAMP.json` and `rationales.jsonl`, a teacher's rationales by question id.
`--target` gets the training questions that have a rationale: 100 of them, chosen by the hash of
their ids, are held out with their rationales (`validation.jsonl`), the others are for training
(`train.jsonl`, `rationales.jsonl`). The paper's validation and test questions together are
`test.jsonl`.

The second command reads the held-out rationales with the student of a run, and prints and writes
(`numbers.json`) its loss of a token and of a number, and how many numbers it would write itself
after the teacher's text so far. "New" numbers are not in the question: they must be calculated.
"""

import hashlib
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import tables
from kpod_jax import baselines
from kpod_jax.config.loading import load_config
from kpod_jax.data import sources
from kpod_jax.data.batches import BatchSource, Layout
from kpod_jax.data.records import Record
from kpod_jax.data.tokens import TokenizedSet
from kpod_jax.distillation import read_trained
from kpod_jax.models.student import Student, load_student
from kpod_jax.parallel import sharding
from kpod_jax.training import forward, losses
from kpod_jax.utils import files

SOURCE = flags.DEFINE_string("source", None, "Folder with SVAMP.json and rationales.jsonl.")
TARGET = flags.DEFINE_string("target", None, "Folder for the data.")
HELD_OUT = 100
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_ROWS = 10  # Rationales per batch.


def write_data(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes train.jsonl, validation.jsonl, test.jsonl and rationales.jsonl."""
    paths = {"path": str(source), "rationales": str(source / "rationales.jsonl")}
    # All 45 questions without a rationale are left out.
    settings = {**paths, "rationales_per_question": 0, "max_rejected_fraction": 0.1}
    records, _ = sources.load_records("svamp", "train", **settings)
    questions = {record.id.partition("#")[0] for record in records}
    held_out = set(sorted(questions, key=_digest)[:HELD_OUT])
    parts = {"train": [], "validation": []}
    for record in records:
        name = "validation" if record.id.partition("#")[0] in held_out else "train"
        parts[name].append(record)
    first = {name: [r for r in rows if "#" not in r.id] for name, rows in parts.items()}
    test = [
        record
        for split in ("validation", "test")
        for record in sources.load_records("svamp", split, path=str(source))[0]
    ]
    _write(folder / "train.jsonl", first["train"], with_rationales=False)
    _write(folder / "validation.jsonl", first["validation"])
    _write(folder / "test.jsonl", test, with_rationales=False)
    _write(folder / "rationales.jsonl", parts["train"])


def _write(path: pathlib.Path, records: Sequence[Record], *, with_rationales: bool = True) -> None:
    rows = []
    for record in records:
        row = {"id": record.id.partition("#")[0], "question": record.question}
        if with_rationales:
            row["rationale"] = record.rationale
        rows.append({**row, "answer": record.answer})
    files.write_jsonl(path, rows)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def measure(workdir: pathlib.Path) -> dict[str, float]:
    """Returns the losses, in nats, and the shares of right numbers on the held-out rationales."""
    config = load_config(workdir)
    student = load_student(config.student, config.seed)
    mesh = sharding.make_mesh()
    records, _ = sources.load_records(config.data, "validation")
    prompt = baselines.prompt_of(config, student)
    tokenized, rejected = student.tokenize(records, prompt)
    assert not rejected
    trains = config.distill.epochs > 0
    params = read_trained("latest", student, mesh, workdir, trains).params
    nll, right = _predictions(student, prompt, params, tokenized, mesh)
    numbers, new = [], []
    for i, record in enumerate(tokenized.records):
        known = set(_NUMBER.findall(record.question))
        for match in _NUMBER.finditer(record.rationale):
            starts, ends = tokenized.rationale_char_spans[i].T
            tokens = (starts < match.end()) & (ends > match.start())
            tokens = np.flatnonzero(tokens)
            numbers.append((nll[i][tokens].sum(), right[i][tokens].all()))
            new.append(match.group() not in known)
    (loss, correct), is_new = np.array(numbers).T, np.array(new)
    return {
        "token_loss": float(np.mean(np.concatenate(nll))),
        "number_loss": float(loss.mean()),
        "numbers_right": float(correct.mean()),
        "new_number_loss": float(loss[is_new].mean()),
        "new_numbers_right": float(correct[is_new].mean()),
        "numbers": len(numbers),
        "new_numbers": int(is_new.sum()),
    }


def _predictions(
    student: Student, prompt: str, params: Any, tokenized: TokenizedSet, mesh: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns each target token's loss, and whether it is the most probable one."""

    @jax.jit
    def compute(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        hidden, head = forward.hidden_states(student.module, params, batch)
        logits = head(hidden).astype(jnp.float32)
        nll = losses.negative_log_likelihood(logits, batch["targets"])
        return nll, logits.argmax(-1) == batch["targets"]

    start, pad = student.decoder_start(prompt), student.tokenizer.pad_token_id
    source = BatchSource(tokenized, Layout(_ROWS, student.seed, pad, start, buckets=1))
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    with sharding.use(mesh):
        for batch in source.in_order(_ROWS):
            index = batch.pop("index")
            results = map(np.asarray, compute(params, sharding.place_global(batch, mesh)))
            found |= {
                i: (nll, right) for i, nll, right in zip(index.tolist(), *results, strict=True)
            }
    lengths = tokenized.targets.lengths
    nll, right = ([found[i][part][:n] for i, n in enumerate(lengths)] for part in (0, 1))
    return nll, right


def main(argv: Sequence[str]) -> None:
    """Writes the data, or measures a run."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument: {argv[1]}")
    if tables.RUN.value:
        workdir = pathlib.Path(tables.RUN.value)
        result = measure(workdir)
        files.write_json(workdir / "numbers.json", result)
        print(*(f"{key}: {value:.4g}" for key, value in result.items()), sep="\n")
    elif SOURCE.value and TARGET.value:
        write_data(pathlib.Path(SOURCE.value), pathlib.Path(TARGET.value))
    else:
        raise app.UsageError("Expected --run, or --source and --target.")


if __name__ == "__main__":
    app.run(main)
