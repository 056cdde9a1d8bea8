"""Exported students in lm-evaluation-harness, by the task of docs/evaluation.md."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from tokenizers import processors

from kpod_jax.data import arithmetic, records
from kpod_jax.evaluation import accuracy
from kpod_jax.models import hub
from kpod_jax.models.student import Student, load_student
from kpod_jax.parallel import sharding
from kpod_jax.utils import files
from tests.conftest import LLAMA_JSON, ROOT

PROMPT = "Q: {question} A: Let's think step by step."
NEW_TOKENS = 8
TINY = str(ROOT / "kpod_jax/assets/tiny_t5")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("lm_eval") is None,
        reason='lm-eval is not installed; pip install "lm-eval>=0.4.13,<0.5"',
    ),
]


def documented(language: str, changes: dict[str, str]) -> str:
    """A block of the documents, with some of its text exchanged."""
    text = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    text = text.split(f"```{language}\n")[1].split("```")[0]
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def harness(folder: pathlib.Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ
        | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def prepared(folder: pathlib.Path, student: Student) -> dict[str, str]:
    """Exports a student, writes four questions and the task; gives our own generations by id."""
    mesh = sharding.make_mesh(1, devices=jax.devices()[:1])
    params = student.load(mesh)
    hub.save_pretrained(
        folder / "export", student.config, params, student.tokenizer, "float32", lora=None
    )
    asked = arithmetic.generate("test", 4, 0)
    records.write_records(folder / "records/test.jsonl", asked)
    changes = {
        "runs/mine/": f"{folder}/",
        "max_gen_toks: 384": f"max_gen_toks: {NEW_TOKENS}",
    }
    files.write_text(folder / "tasks/kpod.yaml", documented("yaml", changes))
    evaluator = accuracy.Evaluator(
        student,
        asked,
        mesh,
        prompt=PROMPT,
        answer_kind="number",
        batch_size=4,
        max_new_tokens=NEW_TOKENS,
    )
    return {row["id"]: row["prediction"] for row in evaluator.predictions(params)}


def test_a_decoder_only_student_by_the_command(tmp_path):
    files.write_json(tmp_path / "config.json", LLAMA_JSON)
    model = str(tmp_path / "config.json")
    student = load_student(model, init="random", tokenizer=TINY, scan_layers=False)
    # No tokenizer of a decoder-only model ends its prompts, as T5's does.
    student.tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    own = prepared(tmp_path, student)
    harness(
        tmp_path,
        *("-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "2"),
        *("--model_args", f"pretrained={tmp_path / 'export'},dtype=float32"),
        *("--include_path", str(tmp_path / "tasks"), "--tasks", "kpod"),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
    )
    (file,) = (tmp_path / "out").rglob("samples_kpod_*.jsonl")
    rows = [json.loads(line) for line in file.open(encoding="utf-8")]
    assert {row["doc"]["id"]: row["resps"][0][0].strip() for row in rows} == own
    (file,) = (tmp_path / "out").rglob("results_*.json")
    assert files.read_json(file)["results"]["kpod"]["exact_match,answer"] == 0


def test_an_encoder_decoder_by_the_python_lines(tmp_path):
    own = prepared(tmp_path, load_student(TINY, scan_layers=False))
    changes = {
        "runs/mine/export": str(tmp_path / "export"),
        "batch_size=16": 'batch_size=2, device="cpu"',
        'print(result["results"]["kpod"])': "import json\nrows = result['samples']['kpod']\n"
        "found = {row['doc']['id']: row['resps'][0][0] for row in rows}\n"
        "open('found.json', 'w').write(json.dumps(found))",
    }
    files.write_text(tmp_path / "lines.py", documented("python", changes))
    harness(tmp_path, "lines.py")
    found = files.read_json(tmp_path / "found.json")
    assert found.keys() == own.keys() and any(own.values())
    for id_, text in own.items():
        # Its generations may be longer than ours.
        assert found[id_].strip().startswith(text) and bool(found[id_].strip()) == bool(text)
