"""The tables of `benchmarks/RESULTS.md` that this package makes, by name."""

from collections.abc import Callable, Iterator

from absl import flags

_KPOD = flags.DEFINE_string("kpod", "runs/kpod", "Work directory of a whole run, for stages.")
_SCOTD = flags.DEFINE_string("scotd", "runs/scotd", "Likewise, of SCoTD.")
_MINIATURE = flags.DEFINE_bool(
    "miniature", False, "gpu_training and gpu_generation with tiny shapes, on any device."
)

# What is imported, is imported by the process that measures.


def _train() -> Iterator[str]:
    from benchmarks.speed import training

    return training.table()


def _smollm2() -> Iterator[str]:
    from benchmarks.speed import training

    return training.precisions()


def _generate() -> Iterator[str]:
    from benchmarks.speed import generation

    return generation.table()


def _start() -> Iterator[str]:
    from benchmarks.speed import startup

    return startup.table()


def _inputs() -> Iterator[str]:
    from benchmarks.speed import inputs

    return inputs.table()


def _checkpoints() -> Iterator[str]:
    from benchmarks.speed import checkpoints

    return checkpoints.table()


def _memory() -> Iterator[str]:
    from benchmarks.speed import memory

    return memory.table()


def _scaling() -> Iterator[str]:
    import jax

    from benchmarks.speed import scaling

    jax.config.update("jax_num_cpu_devices", 8)
    return scaling.table()


def _stages() -> Iterator[str]:
    from benchmarks.speed import stages

    return stages.table(_KPOD.value, _SCOTD.value)


def _techniques() -> Iterator[str]:
    from benchmarks.speed import techniques

    return techniques.table()


def _gpu_training() -> Iterator[str]:
    from benchmarks.speed import gpu

    return gpu.training(_MINIATURE.value)


def _gpu_generation() -> Iterator[str]:
    from benchmarks.speed import gpu

    return gpu.decoding(_MINIATURE.value)


CPU: dict[str, Callable[[], Iterator[str]]] = {
    "train": _train,
    "smollm2": _smollm2,
    "generate": _generate,
    "techniques": _techniques,
    "inputs": _inputs,
    "checkpoints": _checkpoints,
    "memory": _memory,
    "scaling": _scaling,
    "start": _start,
    "stages": _stages,
}
GPU: dict[str, Callable[[], Iterator[str]]] = {
    "gpu_training": _gpu_training,
    "gpu_generation": _gpu_generation,
}
