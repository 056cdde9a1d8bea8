import math
import pathlib
import subprocess
import sys
import types

import pytest

from benchmarks.speed import __main__ as command
from benchmarks.speed import (
    checkpoints,
    generation,
    gpu,
    inputs,
    interleaved,
    machine,
    scaling,
    sections,
    stages,
    startup,
    techniques,
    training,
)
from benchmarks.speed.pairs import OurStep, TorchStep, Work
from kpod_jax.models.llama_config import LlamaConfig
from kpod_jax.models.t5_config import T5Config
from kpod_jax.utils.errors import UserError
from kpod_jax.utils.workdir import Workdir

T5 = T5Config(64, 16, 8, 32, 1, 1, 2)
LLAMA = LlamaConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=8,
)


def columns(rows):
    """Cells of a table's lines, which all have as many as its header."""
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert {len(row) for row in cells} == {len(cells[0])}
    return cells


def test_sides_take_turns_and_what_warms_up_is_not_measured():
    turns = []
    sides = {"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}
    found = interleaved.seconds(sides, rounds=2, warm_up=1)
    assert "".join(turns) == "ababab"
    assert [len(times) for times in found.values()] == [2, 2]


def test_a_ratio_is_of_rounds_that_belong_together():
    found = interleaved.ratio([1.0, 2.0, 1.0], [2.0, 2.0, 1.5])
    assert found == interleaved.Ratio(1.5, 1.0, 2.0)
    assert str(found) == "1.50 (1.00 to 2.00)"


def test_the_exponent_of_a_growth_is_found():
    assert math.isclose(interleaved.growth([1, 2, 4, 8], [3, 12, 48, 192]), 2.0)


@pytest.mark.parametrize("config", [T5, LLAMA])
@pytest.mark.parametrize("lora", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_both_sides_do_the_same_work(config, lora):
    """Of random weights the loss is near that of guessing, and it falls."""
    work = Work(config, 2, 8, 16, supervised=0.5, lora=lora)
    for side in (OurStep(work), TorchStep(work)):
        first = side()
        last = side(steps=3)
        assert first > last if not lora else math.isclose(first, last, rel_tol=0.05)
    assert work.batch()["supervised"].sum() == 16


@pytest.mark.slow
def test_generations_of_both_sides_are_as_long_as_asked_for():
    for config in (T5, LLAMA):
        work = Work(config, 2, 8, 4)
        assert generation.Ours(work)()[:, 0].shape == generation.Torch(work)().shape == (2, 4)
        assert generation.Ours(work, rows=4)(samples=3).shape == (2, 3, 4)


@pytest.mark.slow
def test_the_tables_of_an_accelerator_in_miniature():
    """So that what runs on a GPU seldom does not rot."""
    trained, decoded = columns(gpu.training(True)), columns(gpu.decoding(True))
    assert [row[0] for row in trained[2:]] == list(gpu._TRAINING)
    for row in trained[2:]:
        assert row[2] == "peak not known" and "to" in row[4] and float(row[3].replace(",", "")) > 0
    for row in decoded[2:]:
        assert "to" in row[4]


def test_what_does_not_fit_into_memory_is_said(monkeypatch):
    def full(*_, **__):
        raise gpu.torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(gpu, "TorchStep", full)
    row = gpu.training_row("T5", Work(T5, 2, 8, 8), 1, 1)
    assert columns([*gpu.TRAINING, row])[2][4:] == ["out of memory", "out of memory"]


@pytest.mark.slow
def test_a_row_of_every_other_table():
    small = Work(T5, 2, 8, 8)
    tables = [
        [*training.HEADER, training.row("T5", small, False, 1)],
        [*generation.HEADER, generation.row("T5", small, 1)],
        [
            *scaling.HEADER,
            scaling.row("rows", [(n, scaling.rows(n, small)) for n in (1, 2)], 1),
            scaling.devices_row((1, 2), small, 1),
        ],
        list(checkpoints.table(T5, 1)),
        list(inputs.table(64, 1)),
        list(techniques.table(small, 1, 64)),
    ]
    for table in tables:
        assert len(columns(table)) > 2


def test_the_cost_of_starting_is_that_of_processes():
    row = startup.row("nothing", {"ours": "sum(range(3_000_000))", "torch": "pass"}, 1)
    cells = columns([*startup.HEADER, row])[2]
    assert float(cells[1].split()[0]) > 1
    for program in startup.first_step(1).values():
        compile(program, "first_step", "exec")


def test_stages_are_read_from_work_directories(tmp_path):
    for name, times in (("kpod", {"weigh": 3.0, "distill": 9.0}), ("scotd", {"distill": 10.0})):
        workdir = Workdir(tmp_path / name)
        for stage, value in times.items():
            workdir.mark(stage, {}, seconds=(2 * value, value))
        workdir.mark("eval", {}, complete=False)
    found = columns(stages.table(tmp_path / "kpod", tmp_path / "scotd"))[2:]
    assert found == [
        ["weigh", "3.0", "0.0", ""],
        ["distill", "9.0", "10.0", "0.90"],
        ["all", "12.0", "10.0", "1.20"],
    ]
    with pytest.raises(UserError, match="holds no stage with its time"):
        stages.seconds(tmp_path)


def test_a_table_is_made_by_a_process_with_the_threads_asked_for(monkeypatch):
    """`stages` needs no work: that it fails for want of a directory is told."""
    asked = "import os; print(os.environ['NPROC'], os.environ['OMP_NUM_THREADS'])"
    environment = machine.environment(1)
    found = subprocess.run(
        [sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == ["1", "1"]
    assert "multi_thread_eigen=false" in environment["XLA_FLAGS"]


def test_the_page_has_a_place_for_every_table(tmp_path, monkeypatch):
    page = tmp_path / "RESULTS.md"
    page.write_text(pathlib.Path(command.PAGE).read_text())
    names = [*sections.CPU, *sections.GPU]
    for name in names:
        assert f"<!-- {name} -->" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["x", "--only=train"])
    monkeypatch.setattr(command, "machine", types.SimpleNamespace(versions=lambda: "1"))
    command.note_run(str(page), "train", "A")
    command.note_run(str(page), "gpu_training", "B")
    command.note_run(str(page), "train", "C")
    rows = [row for row in page.read_text().split("\n") if row.startswith("| train | ")]
    assert len(rows) == 1 and "| C | 1 |" in rows[0] and "--only=train" in rows[0]
    assert page.read_text().count("| gpu_training | B |") == 1
