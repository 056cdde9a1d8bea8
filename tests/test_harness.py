"""Exported students in lm-evaluation-harness, by the task of docs/evaluation.md."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from kpod_jax import evaluate, files, sharding
from kpod_jax.data import arithmetic, records
from kpod_jax.models import hub
from kpod_jax.models.student import load_student
from tests.conftest import ROOT

PROMPT = "Q: {question} A: Let's think step by step."
NEW_TOKENS = 8
LLAMA = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None,
        reason='lm-eval is not installed; pip install "lm-eval>=0.4.9,<0.5"',
    ),
]


def task(folder: pathlib.Path) -> None:
    """The documents' task, for fewer and shorter generations."""
    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    text = text.split("```yaml\n")[1].split("```")[0]
    for old, new in (
        ("runs/t5_base/records/test.jsonl", str(folder / "records/test.jsonl")),
        ("max_gen_toks: 384", f"max_gen_toks: {NEW_TOKENS}"),
    ):
        assert old in text
        text = text.replace(old, new)
    files.write_text(folder / "tasks/kpod.yaml", text)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_the_harness_generates_what_we_do(tmp_path, family):
    tiny = str(ROOT / "kpod_jax/assets/tiny_t5")
    if family == "t5":
        student = load_student(tiny, scan_layers=False)
    else:
        files.write_json(tmp_path / "config.json", LLAMA)
        student = load_student(
            str(tmp_path / "config.json"), init="random", tokenizer=tiny, scan_layers=False
        )
    mesh = sharding.make_mesh(1, devices=jax.devices()[:1])
    params = student.load(mesh)
    hub.save_pretrained(
        tmp_path / "export", student.config, params, student.tokenizer, "float32", lora=None
    )
    asked = arithmetic.generate("test", 4, 0)
    records.write_records(tmp_path / "records/test.jsonl", asked)
    task(tmp_path)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "--model", "hf", "--device", "cpu"),
            *("--model_args", f"pretrained={tmp_path / 'export'},dtype=float32"),
            *("--include_path", str(tmp_path / "tasks"), "--tasks", "kpod", "--batch_size", "2"),
            *("--output_path", str(tmp_path / "out"), "--log_samples"),
        ],
        cwd=tmp_path,
        env=os.environ
        | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").rglob("samples_kpod_*.jsonl")
    rows = [json.loads(line) for line in file.open(encoding="utf-8")]
    said = {row["doc"]["id"]: row["resps"][0][0].strip() for row in rows}
    own = evaluate.Evaluator(
        student,
        asked,
        mesh,
        prompt=PROMPT,
        answer_kind="number",
        batch_size=4,
        max_new_tokens=NEW_TOKENS,
    ).predictions(params)
    assert said == {row["id"]: row["prediction"] for row in own}
    (file,) = (tmp_path / "out").rglob("results_*.json")
    assert files.read_json(file)["results"]["kpod"]["exact_match,answer"] == 0
