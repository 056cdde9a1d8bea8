"""Compiles a job's steps ahead of time for TPUs: whether they fit in memory, and what they send.

    python -m kpod_jax.main --mode=compile --config=configs/t5_base.py --topology=v5e:4x4

Covers the steps of training, weighting and generation at their maximum shapes. Arguments are
abstract (shapes, dtypes and shardings), so this needs the TPU compiler but no weights, tokenizer,
data or device.
"""

import dataclasses
import importlib.util
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from kpod_jax.aot.steps import STEPS, Step, job_steps, make_job
from kpod_jax.config.defaults import Config
from kpod_jax.parallel import devices, sharding
from kpod_jax.parallel.processes import log
from kpod_jax.training import costs
from kpod_jax.utils import files
from kpod_jax.utils.errors import UserError, did_you_mean

_EXAMPLES = "v3:4x4, v4:2x2x4, v5e:1x1, v5e:4x4, v5e:16x16, v5p:2x2x1, v6e:4x4, 2xv5e:4x4"
_USABLE = 0.98  # Usable fraction of a device's memory; the runtime takes the rest.
_NO_COMPILER = (
    "--mode=compile needs the TPU compiler, libtpu, which is not installed. Its wheel runs on any "
    "x86 Linux machine: python -m pip install 'jax[tpu]>=0.10,<0.13'"
)


@dataclasses.dataclass(frozen=True)
class Report:
    """Memory and cost of a compiled step. Bytes are per device.

    Attributes:
      name: name of the step.
      fits: whether `peak_bytes + beside_bytes` fits in the device's memory.
      argument_bytes: size of the arguments.
      output_bytes: size of the outputs that do not reuse the arguments' buffers.
      temporary_bytes: size of the temporaries.
      peak_bytes: arguments, outputs, temporaries and the program.
      beside_bytes: what the stage holds in addition while the step runs.
      hbm_bytes: the device's memory.
      where: bytes of arguments and temporaries by use.
      flops: FLOPs of all matrix products, summed over devices.
      counted: the compiler's FLOP count over `costs.flops`, both counting each loop body once.
        Above 1, because the compiler also counts element-wise operations; None if compilation
        failed.
      collectives: collectives by kind.
      sent_bytes: bytes that a device sends for collectives.
      seconds: compilation time.
    """

    name: str
    fits: bool
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    peak_bytes: int
    beside_bytes: int
    hbm_bytes: int
    where: dict[str, int]
    flops: float
    counted: float | None
    collectives: dict[str, costs.Collective]
    sent_bytes: int
    seconds: float


def compile_for(
    config: Config, topology: str, workdir: str | None = None, names: Sequence[str] = STEPS
) -> list[Report]:
    """Compiles a job's steps, prints their memory and cost, and writes `compile.json`.

    Args:
      config: a configuration that `cli.checks.check` accepts.
      topology: TPU topology, such as "v5e:4x4".
      workdir: directory of `compile.json`; None: write nothing.
      names: steps to compile, from STEPS.

    Returns:
      The report of each step.

    Raises:
      UserError: the compiler is missing, a step or the topology is unknown, or the mesh or batch
        size does not suit the topology.
    """
    if unknown := set(names) - set(STEPS):
        raise UserError(
            f"--steps: unknown step {min(unknown)!r}. Expected one of {', '.join(STEPS)}"
            f"{did_you_mean(min(unknown), STEPS)}."
        )
    job = make_job(config, topology_devices(topology))
    kind = job.mesh.devices.flat[0].device_kind
    mesh = ", ".join(f"{axis} {size}" for axis, size in job.mesh.shape.items())
    log(f"{config.student.model} on {topology} ({job.mesh.size} × {kind}; {mesh})")
    facts = {
        "student": config.student.model,
        "answerer": config.weighting.answerer or config.student.model,
        "topology": topology,
        "device_kind": kind,
        "mesh": dict(job.mesh.shape),
        "batch_size": config.distill.batch_size,
        "lengths": [config.student.max_question_tokens, config.student.max_target_tokens],
        "remat": config.student.remat,
        "lora": config.student.lora.rank,
    }
    reports = []
    for step in job_steps(job, names):
        reports.append(compile_step(step, job.mesh))
        log(describe(reports[-1], job.mesh.size))
        if not reports[-1].fits:
            log(advice(reports[-1], config, job.mesh.size))
        if workdir:  # After each step, because some take minutes.
            steps = [dataclasses.asdict(report) for report in reports]
            files.write_json(f"{workdir}/compile.json", facts | {"steps": steps})
    return reports


def topology_devices(name: str) -> Sequence[Any]:
    """Returns the devices of a TPU topology, as compilation targets.

    Args:
      name: a TPU type and the dimensions of a slice in chips, such as "v5e:4x4"; "2xv5e:4x4" is two
        such slices.

    Raises:
      UserError: the compiler is not installed, or the topology is unknown.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(_NO_COMPILER)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # Skip the cloud metadata server.
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")  # Errors about a missing TPU are expected.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # No chip is used.
    options: dict[str, Any] = {}
    count, topology = re.fullmatch(r"(?:([1-9]\d{0,3})x(?=[a-z]))?(.*)", name, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
    if match := re.fullmatch(r"\w+:(\d+)x(\d+)(x\d+)?", topology):
        # Use four-chip hosts if they divide the slice.
        options["chips_per_host_bounds"] = [2 - int(size) % 2 for size in match.groups()[:2]] + [1]
    if topology.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # One device per chip, as on Cloud TPU.
    if count is not None:
        options["num_slices"] = int(count)
    try:
        return topologies.get_topology_desc(topology, "tpu", **options).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"--topology={name}: not a topology that the compiler knows ({reason}). Expected a TPU "
            f"type and the dimensions of its slices in chips, such as {_EXAMPLES}."
        ) from error


def compile_step(step: Step, mesh: Mesh) -> Report:
    """Compiles a step for the devices of a mesh.

    Raises:
      UserError: the device kind is unknown.
    """
    kind = mesh.devices.flat[0].device_kind
    device = devices.lookup(kind)
    if device is None:
        raise UserError(f"Unknown device kind {kind!r}. Add it to kpod_jax/parallel/devices.py.")
    start = time.monotonic()
    with sharding.use(mesh):
        traced = step.function.trace(*step.arguments)
        lowered = traced.lower()
    where = {name: bytes_on_a_device(tree) for name, tree in step.parts.items()}
    arguments, beside = sum(where.values()), bytes_on_a_device(step.beside)
    known = {"gradients": bytes_on_a_device(step.gradients), "logits": step.logits}
    result: dict[str, Any] = {
        "name": step.name,
        "beside_bytes": beside,
        "hbm_bytes": device.hbm_bytes,
        "flops": costs.flops(traced.jaxpr),
    }
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        peak = max(exhausted_bytes(str(error)), arguments)
        where |= split_temporaries(peak - arguments, known)
        return Report(
            **result,
            fits=False,
            argument_bytes=arguments,
            output_bytes=0,
            temporary_bytes=peak - arguments,
            peak_bytes=peak,
            where=where,
            counted=None,
            collectives={},
            sent_bytes=0,
            seconds=time.monotonic() - start,
        )
    memory = compiled.memory_analysis()
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporary = memory.temp_size_in_bytes
    peak = memory.argument_size_in_bytes + output + temporary + memory.generated_code_size_in_bytes
    collectives = costs.collectives(compiled.as_text() or "")
    counted = compiled.cost_analysis()["flops"] * mesh.size
    return Report(
        **result,
        fits=fits(peak + beside, device.hbm_bytes),
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=output,
        temporary_bytes=temporary,
        peak_bytes=peak,
        where=where | split_temporaries(temporary, known),
        counted=counted / max(1.0, costs.flops(traced.jaxpr, once=True)),
        collectives=collectives,
        sent_bytes=costs.sent_bytes(collectives),
        seconds=time.monotonic() - start,
    )


def fits(needed: int, hbm_bytes: int) -> bool:
    """Returns whether a device has room for `needed` bytes besides its runtime."""
    return needed <= _USABLE * hbm_bytes


def exhausted_bytes(message: str) -> int:
    """Parses the bytes needed from a compiler's out-of-memory message; 0 if it gives none."""
    match = re.search(r"Used ([\d.]+)([KMGT]) of|temporaries \(([\d.]+)([KMGT])\)", message)
    if match is None:
        return 0
    number, unit = [group for group in match.groups() if group]
    return int(float(number) * 1024 ** (1 + "KMGT".index(unit)))


def split_temporaries(temporary: int, known: dict[str, int]) -> dict[str, int]:
    """Splits temporaries into known uses and the remainder, which is mostly activations.

    Known sizes are capped at what is left, since gradients may never all exist at once.
    """
    result = {}
    for name, size in known.items():
        result[name] = min(size, temporary)
        temporary -= result[name]
    return result | {"activations": temporary}


def bytes_on_a_device(tree: Any) -> int:
    """Returns the bytes per device of a tree of jax.ShapeDtypeStruct.

    A leaf without a sharding counts in full.
    """
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        total += int(np.prod(shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize
    return total


def describe(report: Report, count: int) -> str:
    """Formats a report for the user, in three lines."""
    gigabytes = {
        "arguments": report.argument_bytes,
        "outputs": report.output_bytes,
        "temporaries": report.temporary_bytes,
        "held besides": report.beside_bytes,
    }
    sizes = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in gigabytes.items())
    need = (report.peak_bytes + report.beside_bytes) / 1e9
    where = sorted(report.where.items(), key=lambda item: -item[1])
    sent = ", ".join(
        f"{c.count} {kind} of {c.bytes / 1e6:.1f} MB" for kind, c in report.collectives.items()
    )
    verdict = "fits" if report.fits else "does NOT fit"
    return (
        f"{report.name}: {verdict}: {need:.2f} of {report.hbm_bytes / 1e9:.1f} GB per device "
        f"({sizes}); compiled in {report.seconds:.0f} s\n"
        f"  by use: {', '.join(f'{name} {size / 1e9:.2f} GB' for name, size in where if size)}\n"
        f"  {report.flops:.3g} FLOPs on {count} devices; {sent or 'no collectives'}"
    )


_BATCH = {"train": "distill", "fit": "weighting", "learn": "weighting"}


def advice(report: Report, config: Config, count: int) -> str:
    """Suggests settings to change, based on what takes the most memory."""
    where = report.where
    persistent = where.get("parameters", 0) + where.get("optimiser state", 0) + report.beside_bytes
    persistent += where.get("gradients", 0)
    is_large = persistent > report.hbm_bytes / 2
    tips = []
    if is_large and config.mesh.fsdp * config.mesh.tensor not in (count, -count):
        tips.append(f"shard parameters and optimizer state (at most mesh.fsdp={count})")
    if is_large and report.name in ("fit", "learn"):
        tips.append("use a smaller answerer (weighting.answerer)")
    elif is_large and not config.student.lora.rank:
        tips.append("train only adapters (student.lora.rank)")
    if where["activations"] + where["logits"] > report.hbm_bytes / 4:
        if report.name in _BATCH and config.student.remat != "full":
            tips.append("rematerialize activations (student.remat=full)")
        key = f"{_BATCH.get(report.name, 'eval')}.batch_size"
        tips.append(f"lower the batch size ({key})")
        if report.name == "train":
            tips.append("accumulate gradients (distill.micro_batches)")
    tips = tips or ["use more devices"]
    return "  To make it fit: " + "; ".join(tips) + "."
