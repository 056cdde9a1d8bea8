r"""SVAMP with a teacher's rationales: the data of `configs/sweeps/smollm2_svamp.py` and its figures.

    python -m benchmarks.svamp --source=DIR --folder=FOLDER    # writes the data
    python -m benchmarks.svamp --runs=DIR --write              # adds the sweep's figures to docs/

DIR holds `SVAMP.json` and `rationales.jsonl` (data.rationales in docs/data.md). FOLDER gets the
training questions that have a rationale: 100 of them, chosen by the hash of their ids, are held out
as `validation.jsonl`, with their rationales; the others are `train.jsonl`. The paper's validation
and test questions together are `test.jsonl`.
"""

import hashlib
import pathlib
from collections.abc import Sequence

from absl import app, flags

from kpod_jax.data import sources
from kpod_jax.data.records import Record
from kpod_jax.utils import files

SOURCE = flags.DEFINE_string("source", None, "Folder with SVAMP.json and rationales.jsonl.")
FOLDER = flags.DEFINE_string("folder", None, "Folder for the data.")
HELD_OUT = 100


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


def _write(
    path: pathlib.Path, records: Sequence[Record], *, with_rationales: bool = True
) -> None:
    rows = []
    for record in records:
        row = {"id": record.id.partition("#")[0], "question": record.question}
        if with_rationales:
            row["rationale"] = record.rationale
        rows.append({**row, "answer": record.answer})
    files.write_jsonl(path, rows)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main(argv: Sequence[str]) -> None:
    """Writes the data."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected argument: {argv[1]}")
    write_data(pathlib.Path(SOURCE.value), pathlib.Path(FOLDER.value))


if __name__ == "__main__":
    app.run(main)
