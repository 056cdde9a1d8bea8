"""The SVAMP experiment's data and its measures."""

import json
import math

import numpy as np

from benchmarks import svamp
from kpod_jax import pipeline
from kpod_jax.config.loading import load_config
from kpod_jax.utils import files


def test_no_question_is_in_two_files(shared_data, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "data"
    rows = json.loads((shared_data / "svamp/SVAMP.json").read_text())
    files.write_text(source / "SVAMP.json", json.dumps(rows))
    # The first question has no rationale, the others have two each.
    taught = [
        {
            "id": row["ID"],
            "rationale": f"{text} {row['Answer']:.10g}.",
            "answer": f"{row['Answer']:.10g}",
        }
        for row in rows[1:]
        for text in ("It is", "They have")
    ]
    files.write_jsonl(source / "rationales.jsonl", taught)
    svamp.write_data(source, folder)
    read = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation", "test", "rationales")
    }
    ids = {name: {row["id"] for row in rows} for name, rows in read.items()}
    assert len(ids["validation"]) == len(read["validation"]) == svamp.HELD_OUT
    assert ids["train"] == ids["rationales"]
    assert len(read["rationales"]) == 2 * len(read["train"])
    assert not ids["train"] & ids["validation"]
    assert not ids["test"] & (ids["train"] | ids["validation"])
    assert len(ids["train"] | ids["validation"] | ids["test"]) == len(rows) - 1
    assert all(row["rationale"] for row in read["validation"])
    assert all("rationale" not in row for row in read["train"] + read["test"])


def test_a_run_is_measured_on_its_held_out_rationales(tmp_path):
    config = load_config("configs/quickstart.py:none")
    config.data.train_examples, config.data.validation_examples = 8, 12
    pipeline.run(config, tmp_path, "rationales")
    result = svamp.measure(tmp_path)
    text = (tmp_path / "records/validation.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    numbers = [
        (number in record["question"], number)
        for record in records
        for number in svamp._NUMBER.findall("".join(record["steps"]))
    ]
    assert result["numbers"] == len(numbers)
    assert 0 < result["new_numbers"] < result["numbers"]
    assert 0 < result["numbers_right"] < 1
    assert 0 < result["token_loss"] < math.log(828)  # Better than a guess among all tokens.
    assert all(np.isfinite(list(result.values())))
