r"""FLOPs and hours of the paper's runs, counted from the texts and the traced steps.

    python -m benchmarks.reproduce --folder=FOLDER            # prints a table
    python -m benchmarks.reproduce --folder=FOLDER --write    # and updates docs/reproduce.md

FOLDER holds gsm8k/ and svamp/ with the original files and a teacher's rationales.jsonl, and
tokenizers/t5_spiece.model and tokenizers/llama_tokenizer.model. No weights are read, and nothing is
compiled or trained.
"""

import pathlib

import jax
from absl import app, flags

from benchmarks import tables
from configs import flan_t5_large, flan_t5_xl, llama_7b
from kpod_jax.aot.plan import plan_stages
from kpod_jax.aot.steps import make_job
from kpod_jax.config import paper
from kpod_jax.data.prepare import prepare_data
from kpod_jax.models.student import load_student

_FOLDER = flags.DEFINE_string("folder", None, "Directory of data and tokenizers.", required=True)
# TFLOP/s of the hours: 40% of the peak of one NVIDIA H100 in bfloat16.
RATE = 400.0
_STUDENTS = {
    "llama_7b": (llama_7b, "llama_tokenizer.model"),
    "flan_t5_xl": (flan_t5_xl, "t5_spiece.model"),
    "flan_t5_large": (flan_t5_large, "t5_spiece.model"),
}
_DATA = ("gsm8k", "svamp")
_METHODS = ("kpod", "scotd")


def row(name: str, data: str, method: str, folder: pathlib.Path) -> str:
    """Returns a row of the table: PFLOP by stage, hours, and the largest memory of a stage."""
    module, tokenizer = _STUDENTS[name]
    config = module.get_config(method)
    match = paper.student(config.student.model)
    assert match is not None
    config.data.name, config.data.path = data, str(folder / data)
    config.data.rationales = str(folder / data / "rationales.jsonl")
    config.student.init = "random"
    config.student.tokenizer = str(folder / "tokenizers" / tokenizer)
    config.weighting.tokenizer = str(folder / "tokenizers" / "t5_spiece.model")
    config.distill.epochs = match.epochs[data]
    student = load_student(config.student, config.seed)
    job = make_job(config, jax.devices()[:1])
    stages = plan_stages(job, student, prepare_data(config.data, student))
    flops = {stage.stage: stage.flops / 1e15 for stage in stages}
    weigh = sum(value for stage, value in flops.items() if stage.startswith("weigh"))
    parts = [weigh, flops.get("score", 0.0), flops["distill"], flops["eval"]]
    hours = sum(parts) * 1e3 / RATE / 3600
    numbers = " | ".join(f"{part:.3g}" if part else "" for part in parts)
    return f"| {match.name} | {paper.DATA[data]} | {method} | {numbers} | {hours:.2f} |"


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    folder = pathlib.Path(_FOLDER.value)
    rows = [
        f"| student | data | method | weighting, PFLOP | scoring | distillation | test | hours at "
        f"{RATE:g} TFLOP/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in _STUDENTS:
        rows += [row(name, data, method, folder) for data in _DATA for method in _METHODS]
    print("\n".join(rows))
    if tables.WRITE.value:
        tables.put("docs/reproduce.md", "hours", rows)


if __name__ == "__main__":
    app.run(main)
