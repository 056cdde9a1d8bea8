"""A job's steps, compiled for TPUs that are not there: whether they fit, and what they send.

    python -m kpod_jax.main --mode=compile --config=configs/t5_base.py --topology=v5e:4x4

The steps are those that train, weigh and generate, in their longest shapes; their arguments are
shapes, dtypes and shardings alone. So neither weights nor tokenizer, data or device are needed, but
the TPU's compiler is.
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
from kpod_jax.utils.errors import UserError

_EXAMPLES = "v3:4x4, v4:2x2x4, v5e:1x1, v5e:4x4, v5e:16x16, v5p:2x2x1, v6e:4x4"
_USABLE = 0.98  # Of a device's memory; the rest is the runtime's.
_NO_COMPILER = (
    "--mode=compile needs the TPU's compiler, libtpu, which is not installed. It is a wheel that "
    "works on any x86 Linux machine: python -m pip install 'jax[tpu]>=0.10,<0.13'"
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What compiling a step told; bytes are those of one device.

    Attributes:
      name: of the step.
      fits: whether `peak_bytes` and `beside_bytes` are within the device's memory.
      argument_bytes: what the step is given.
      output_bytes: what it makes and does not put in the place of arguments.
      temporary_bytes: what it holds while it runs.
      peak_bytes: all of these and the program.
      beside_bytes: what the stage holds besides.
      hbm_bytes: of the device.
      where: bytes by use, of arguments and temporaries.
      flops: of all matrix products, over all devices.
      counted: the compiler's count of operations over ours of its kind, every loop once; with
        element-wise operations, so above 1. None where it did not compile.
      collectives: by kind.
      sent_bytes: that a device sends for them.
      seconds: that compiling took.
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
    """Compiles a job's steps, prints what they need, and writes `compile.json` to a directory.

    Args:
      config: checked (`configuration_checks.check`).
      topology: such as "v5e:4x4".
      workdir: None: nothing is written.
      names: of the steps, some of STEPS.

    Raises:
      UserError: no compiler, no such topology or step, or a mesh or batch that does not suit it.
    """
    if unknown := set(names) - set(STEPS):
        raise UserError(f"--steps={min(unknown)}: expected some of {', '.join(STEPS)}.")
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
        if workdir:  # After each step: some take minutes.
            steps = [dataclasses.asdict(report) for report in reports]
            files.write_json(f"{workdir}/compile.json", facts | {"steps": steps})
    return reports


def topology_devices(name: str) -> Sequence[Any]:
    """The devices of a TPU topology, to be compiled for.

    Raises:
      UserError: the compiler is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(_NO_COMPILER)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # Asks no cloud what machine this is.
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")  # That it is none is no error here.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # No chip is taken.
    options: dict[str, Any] = {}
    if match := re.fullmatch(r"\w+:(\d+)x(\d+)(x\d+)?", name):
        # Hosts of four chips where these divide the slice.
        options["chips_per_host_bounds"] = [2 - int(size) % 2 for size in match.groups()[:2]] + [1]
    if name.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # A chip is one device, as Cloud TPU has it.
    try:
        return topologies.get_topology_desc(name, "tpu", **options).devices
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"--topology={name}: the compiler does not know it ({reason}). Expected a kind of TPU "
            f"and the sides of its slice in chips, such as {_EXAMPLES}."
        ) from error


def compile_step(step: Step, mesh: Mesh) -> Report:
    """Compiles a step for the devices of a mesh.

    Raises:
      UserError: nothing is known of such devices.
    """
    kind = mesh.devices.flat[0].device_kind
    device = devices.lookup(kind)
    if device is None:
        raise UserError(f"Devices of kind {kind!r} are not in kpod_jax/parallel/devices.py.")
    began = time.monotonic()
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
            seconds=time.monotonic() - began,
        )
    memory = compiled.memory_analysis()
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    temporary = memory.temp_size_in_bytes
    peak = memory.argument_size_in_bytes + made + temporary + memory.generated_code_size_in_bytes
    found = costs.collectives(compiled.as_text() or "")
    counted = compiled.cost_analysis()["flops"] * mesh.size
    return Report(
        **result,
        fits=fits(peak + beside, device.hbm_bytes),
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=made,
        temporary_bytes=temporary,
        peak_bytes=peak,
        where=where | split_temporaries(temporary, known),
        counted=counted / max(1.0, costs.flops(traced.jaxpr, once=True)),
        collectives=found,
        sent_bytes=costs.sent_bytes(found),
        seconds=time.monotonic() - began,
    )


def fits(needed: int, hbm_bytes: int) -> bool:
    """Whether a device has room for so many bytes, and for what its runtime takes."""
    return needed <= _USABLE * hbm_bytes


def exhausted_bytes(message: str) -> int:
    """What a program needs, as the compiler says that there is too little; 0 if it does not."""
    match = re.search(r"Used ([\d.]+)([KMGT]) of|temporaries \(([\d.]+)([KMGT])\)", message)
    if match is None:
        return 0
    number, unit = [group for group in match.groups() if group]
    return int(float(number) * 1024 ** (1 + "KMGT".index(unit)))


def split_temporaries(temporary: int, known: dict[str, int]) -> dict[str, int]:
    """What is known to be among temporaries, and the rest, which is activations for the most part.

    Gradients may never be there all at once, so what is known is cut to what there is.
    """
    result = {}
    for name, size in known.items():
        result[name] = min(size, temporary)
        temporary -= result[name]
    return result | {"activations": temporary}


def bytes_on_a_device(tree: Any) -> int:
    """Of a tree of jax.ShapeDtypeStruct; a leaf without a sharding is whole."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        total += int(np.prod(shape, dtype=np.int64)) * np.dtype(leaf.dtype).itemsize
    return total


def describe(report: Report, count: int) -> str:
    """Some lines for the user."""
    gigabytes = {
        "arguments": report.argument_bytes,
        "outputs": report.output_bytes,
        "temporaries": report.temporary_bytes,
        "beside": report.beside_bytes,
    }
    sizes = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in gigabytes.items())
    need = (report.peak_bytes + report.beside_bytes) / 1e9
    where = sorted(report.where.items(), key=lambda item: -item[1])
    sent = ", ".join(
        f"{c.count} {kind} of {c.bytes / 1e6:.1f} MB" for kind, c in report.collectives.items()
    )
    verdict = "fits" if report.fits else "does NOT fit"
    return (
        f"{report.name}: {verdict}: {need:.2f} of {report.hbm_bytes / 1e9:.1f} GB on each device "
        f"({sizes}); compiled in {report.seconds:.0f} s\n"
        f"  where: {', '.join(f'{name} {size / 1e9:.2f} GB' for name, size in where if size)}\n"
        f"  {report.flops:.3g} FLOPs on {count} devices; {sent or 'no collectives'}"
    )


_BATCH = {"train": "distill", "fit": "weighting", "learn": "weighting"}


def advice(report: Report, config: Config, count: int) -> str:
    """What to change, by what takes most."""
    where = report.where
    kept = where.get("parameters", 0) + where.get("optimiser state", 0) + report.beside_bytes
    kept += where.get("gradients", 0)
    tips = []
    if kept > report.hbm_bytes / 2 and config.mesh.fsdp * config.mesh.tensor not in (count, -count):
        tips.append(f"split parameters and optimiser state (mesh.fsdp={count} at most)")
    if kept > report.hbm_bytes / 2 and report.name in ("fit", "learn"):
        tips.append("choose a smaller weighting.answerer")
    elif kept > report.hbm_bytes / 2 and not config.student.lora.rank:
        tips.append("train adapters alone (student.lora.rank)")
    if where["activations"] + where["logits"] > report.hbm_bytes / 4:
        if report.name in _BATCH and config.student.remat != "full":
            tips.append("recompute activations (student.remat=full)")
        key = f"{_BATCH.get(report.name, 'eval')}.batch_size"
        tips.append(f"fewer rows (a lower {key})")
        if report.name == "train":
            tips.append("split the step (distill.micro_batches)")
    tips = tips or ["take more devices"]
    return "  To make it fit: " + "; ".join(tips) + "."
