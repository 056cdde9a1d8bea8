"""What the measured programs run on: threads, devices, versions."""

import concurrent.futures
import importlib.metadata
import multiprocessing
import os
import pathlib
import platform
from collections.abc import Callable
from typing import Any

_PACKAGES = ("jax", "flax", "torch", "transformers", "peft")


def environment(threads: int) -> dict[str, str]:
    """Of a process whose JAX and torch have so many threads, and share a GPU's memory."""
    flags = os.environ.get("XLA_FLAGS", "")
    if threads == 1:
        flags += " --xla_cpu_multi_thread_eigen=false"
    return dict(os.environ) | {
        "NPROC": str(threads),  # Of XLA's thread pool.
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "XLA_FLAGS": flags.strip(),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module gives in a process that has done nothing else."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as process:
        return process.submit(function, *arguments).result()


def versions() -> str:
    """Of what is compared, where it is installed."""
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join([f"Python {platform.python_version()}", *found])


def device(threads: int) -> str:
    """The first accelerator, or the processor and the threads that are used of it."""
    import jax

    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    name = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return f"{name}, {threads} thread{'s' * (threads != 1)}"
