r"""Device memory of a train step, from shapes alone: no weights, no accelerator.

    python -m benchmarks.memory [--write]

The step is compiled ahead of time for this machine's CPU, whose compiler counts more than a GPU's
needs: it multiplies bfloat16 and int8 matrices by way of float32 copies.
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
    """Bytes.

    Attributes:
      arguments: parameters, optimiser state and batch.
      temporary: activations, gradients and whatever else the step makes.
    """

    arguments: int
    temporary: int

    @property
    def total(self) -> int:
        """Both; the new state takes the place of the old one."""
        return self.arguments + self.temporary


def llama_7b(base_dtype: str, remat: str = "full") -> Student:
    """LLaMA-7B with LoRA of rank 64, as in the paper; without weights."""
    return load_student(
        "huggyllama/llama-7b",
        init="random",
        tokenizer="kpod_jax/assets/tiny_t5",  # Any with fewer tokens: none is used.
        dtype="bfloat16",
        remat=remat,
        lora=LoRAConfig(64, 64.0, targets=("q", "v"), base_dtype=base_dtype),
    )


def of_train_step(student: Student, rows: int, prompt: int, target: int) -> Memory:
    """Compiles a step of Adam on one device.

    Args:
      student: without parameters.
      rows: of a batch.
      prompt: tokens.
      target: tokens.
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
        found = lowered.compile().memory_analysis()
    return Memory(found.argument_size_in_bytes, found.temp_size_in_bytes)


def main(argv: list[str]) -> None:
    """Prints a table of LLaMA-7B with LoRA, and with --write puts it into docs/students.md."""
    del argv
    rows = [
        "| base weights | remat | arguments, GB | temporary, GB | total, GB |",
        "| --- " * 5 + "|",
    ]
    for base_dtype, remat in (("bfloat16", "full"), ("bfloat16", "dots"), ("int8", "full")):
        found = of_train_step(llama_7b(base_dtype, remat), 4, 256, 384)
        sizes = (found.arguments, found.temporary, found.total)
        columns = " | ".join(f"{size / _GB:.1f}" for size in sizes)
        rows.append(f"| {base_dtype} | {remat} | {columns} |")
    print("\n".join(rows))
    if tables.WRITE.value:
        tables.put("docs/students.md", "memory", rows)


if __name__ == "__main__":
    app.run(main)
