r"""Device memory of a train step, from shapes alone, without weights or an accelerator.

    python -m benchmarks.memory [--write]

The step is compiled ahead of time for this machine's CPU. That overestimates the memory on a GPU,
since the CPU multiplies bfloat16 and int8 matrices as float32 copies.
"""

import dataclasses

import jax
from absl import app

from benchmarks import tables
from kpod_jax.aot.steps import batch_of
from kpod_jax.config import defaults
from kpod_jax.models.layers import LoRAConfig
from kpod_jax.models.student import Student, load_student
from kpod_jax.parallel import sharding
from kpod_jax.training import train_step

_GB = 1e9


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory in bytes.

    Attributes:
      arguments: parameters, optimizer state and batch.
      temporary: activations, gradients and other temporaries.
    """

    arguments: int
    temporary: int

    @property
    def total(self) -> int:
        """Arguments and temporaries; the new state reuses the memory of the old one."""
        return self.arguments + self.temporary


def llama_7b(base_dtype: str, remat: str = "full") -> Student:
    """Returns LLaMA-7B with LoRA of rank 64, as in the paper, without weights."""
    return load_student(
        "huggyllama/llama-7b",
        init="random",
        tokenizer="kpod_jax/assets/tiny_t5",  # Unused; any with fewer tokens works.
        dtype="bfloat16",
        remat=remat,
        lora=LoRAConfig(64, 64.0, targets=("q", "v"), base_dtype=base_dtype),
    )


def of_train_step(student: Student, rows: int, prompt: int, target: int) -> Memory:
    """Compiles a train step with Adam on one device.

    Args:
      student: student without parameters.
      rows: rows of a batch.
      prompt: tokens of a prompt.
      target: tokens of a target.
    """
    mesh = sharding.make_mesh(1, 1, 1, devices=jax.devices()[:1])
    config = defaults.get_config().distill
    optimizer, rate = train_step.make_optimizer(config, 100), train_step.learning_rate(config, 100)
    step = train_step.make_train_step(student.module, optimizer, rate)
    trained, frozen = student.split(student.abstract(mesh))
    batch = batch_of(rows, prompt, target, mesh)
    state = train_step.abstract_state(trained, optimizer)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with sharding.use(mesh):
        lowered = step.lower(state, frozen, batch, key)  # pyright: ignore
        analysis = lowered.compile().memory_analysis()
    return Memory(analysis.argument_size_in_bytes, analysis.temp_size_in_bytes)


def main(argv: list[str]) -> None:
    """Prints a table of LLaMA-7B with LoRA, and with --write updates docs/students.md."""
    del argv
    rows = [
        "| base weights | remat | arguments, GB | temporary, GB | total, GB |",
        "| --- " * 5 + "|",
    ]
    for base_dtype, remat in (("bfloat16", "full"), ("bfloat16", "dots"), ("int8", "full")):
        memory = of_train_step(llama_7b(base_dtype, remat), 4, 256, 384)
        sizes = (memory.arguments, memory.temporary, memory.total)
        columns = " | ".join(f"{size / _GB:.1f}" for size in sizes)
        rows.append(f"| {base_dtype} | {remat} | {columns} |")
    print("\n".join(rows))
    if tables.WRITE.value:
        tables.put("docs/students.md", "memory", rows)


if __name__ == "__main__":
    app.run(main)
