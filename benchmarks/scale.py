r"""What steps need on TPUs and GPUs, and a model of their cost held against compiled steps.

    python -m kpod_jax.main --mode=compile --config=configs/t5_base.py --topology=v5e:4x4 \
        --workdir=runs/compiled/t5_base-v5e-16
    ...                                      # as many as there are
    python -m benchmarks.scale --compiled=runs/compiled [--write]  # prints tables for docs/scale.md

What was compiled is kept in benchmarks/compiled/, a file a job. Each `compile.json` below
--compiled adds its steps to these, or takes the place of the same ones; with --write they are
stored. Nothing is compiled here.
"""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import tables
from configs import flan_t5_large, flan_t5_xl, llama_7b, smollm2_135m, t5_base
from kpod_jax.aot.compile import bytes_on_a_device, fits
from kpod_jax.aot.steps import STEPS, Step, job_steps, make_job
from kpod_jax.config.defaults import Config
from kpod_jax.models import hub
from kpod_jax.models.t5_config import T5Config
from kpod_jax.parallel import devices
from kpod_jax.utils import files

_COMPILED = flags.DEFINE_string("compiled", "", "Folder of work directories with new results.")
_KEPT = pathlib.Path("benchmarks/compiled")
# Of a step's report, what tables are made of.
_FIELDS = ("name", "fits", "peak_bytes", "beside_bytes", "where", "flops", "counted", "sent_bytes")
_CONFIGS = (smollm2_135m, t5_base, flan_t5_large, flan_t5_xl, llama_7b)
_GPU = "NVIDIA H100 80GB HBM3"
# The plan's data: tokens of rationales, and of a question, a rationale and an answer sentence.
_RATIONALE_TOKENS, _LENGTHS, _SHARE_OF_PEAK = 1e9, (60, 150, 12), 0.4


def configs() -> list[Config]:
    """The students' configurations, with architectures that are known by name."""
    made = [module.get_config() for module in _CONFIGS]
    for config in made:
        config.student.model = config.student.model.removesuffix("-Instruct")
    return made


def forward_products(model: str, source: int, target: int) -> tuple[float, float, float]:
    """FLOPs of a row's forward pass: of the layers' weights, of attention, and of the head.

    Args:
      model: a name of `models.families.NAMED`.
      source: tokens of the prompt.
      target: tokens of the target.
    """
    c = hub.load_config(model)
    if isinstance(c, T5Config):
        inner = c.d_model * c.num_heads * c.d_kv
        mlp = (3 if c.gated else 2) * c.d_model * c.d_ff
        encoder, decoder = c.num_layers, c.num_decoder_layers
        weights = encoder * source * (4 * inner + mlp) + decoder * target * (6 * inner + mlp)
        weights += decoder * source * 2 * inner  # Keys and values of what was encoded.
        pairs = encoder * source**2 + decoder * (target**2 + source * target)
        width = c.num_heads * c.d_kv
    else:
        length, width = source + target, c.num_attention_heads * c.head_dim
        keys = c.num_key_value_heads * c.head_dim
        layer = c.hidden_size * (2 * width + 2 * keys + 3 * c.intermediate_size)
        weights = c.num_hidden_layers * length * layer
        pairs = c.num_hidden_layers * length**2
    return 2.0 * weights, 4.0 * pairs * width, 2.0 * target * c.d_model * c.vocab_size


def train_flops(
    model: str, rows: int, source: int, target: int, *, remat: str = "none", lora: int = 0
) -> float:
    """FLOPs of a train step: forward, backward to the inputs, to the weights, and computed anew.

    Adapters themselves are left out.
    """
    weights, attention, head = forward_products(model, source, target)
    to_weights = 0 if lora else 1
    total = weights * (2 + to_weights + (remat == "full"))
    total += attention * (3 + (remat != "none"))
    return rows * (total + head * (2 + to_weights))


def matrix_parameters(model: str) -> float:
    """Parameters of layers and head, which are what is gathered and summed up."""
    source = int(isinstance(hub.load_config(model), T5Config))  # Else its layers would count twice.
    weights, _, head = forward_products(model, source, 1)
    return (weights + head) / 2


def train_sent(mesh: dict[str, int], parameters: float, trained: float) -> float:
    """Bytes that a device sends for parameters and gradients in a train step.

    Gradients are summed up over the devices that share no parameters (twice round, bfloat16), or
    to the device that keeps them (once, with fsdp); parameters are gathered twice, in bfloat16, for
    the forward and for the backward pass.
    """
    own = 1 / mesh["tensor"]
    sent = 2 * 2 * trained * own / mesh["fsdp"] if mesh["data"] > 1 else 0.0
    if mesh["fsdp"] > 1:
        sent += 2 * 2 * parameters * own + 2 * trained * own
    return sent


def activations_sent(
    model: str, mesh: dict[str, int], rows: int, source: int, target: int
) -> float:
    """Bytes that a device sends for activations, where heads and hidden units are split.

    Each sublayer's output is summed up, forward and backward, twice round in bfloat16.
    """
    if mesh["tensor"] == 1:
        return 0.0
    c, own = hub.load_config(model), rows / (mesh["data"] * mesh["fsdp"])
    if isinstance(c, T5Config):
        tokens = 2 * c.num_layers * source + 3 * c.num_decoder_layers * target
    else:
        tokens = 2 * c.num_hidden_layers * (source + target)
    return 2 * 2 * 2 * own * tokens * c.d_model


def train_traffic(
    model: str,
    mesh: dict[str, int],
    rows: int,
    source: int,
    target: int,
    *,
    remat: str = "none",
    lora: int = 0,
) -> float:
    """Bytes between a device's memory and its units in a train step, about.

    Weights are read in bfloat16 in each pass; Adam reads and writes 28 bytes for each parameter
    that is trained; activations are 34 bytes for each token, layer and unit of width (Korthikanti
    et al., "Reducing Activation Recomputation in Large Transformer Models", 2022, section 4.1;
    attention's own are fused), written and read once, and with remat once more.
    """
    c, parameters = hub.load_config(model), matrix_parameters(model)
    passes = 2 + (remat == "full")
    kept = 1 / (mesh["tensor"] * mesh["fsdp"])
    weights = 2 * passes * parameters / mesh["tensor"]
    optimizer = 0.0 if lora else 28 * parameters * kept
    if isinstance(c, T5Config):
        tokens = c.num_layers * source + c.num_decoder_layers * target
    else:
        tokens = c.num_hidden_layers * (source + target)
    own = rows / (mesh["data"] * mesh["fsdp"] * mesh["tensor"])
    return weights + optimizer + 34 * passes * own * tokens * c.d_model


def read_compiled(folder: str | pathlib.Path, name: str = "**/compile.json") -> list[dict]:
    """All results below a folder."""
    return [json.loads(path.read_text()) for path in sorted(pathlib.Path(folder).glob(name))]


def merged(jobs: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Jobs by name; of a step of the same job the last is taken."""
    result: dict[str, dict[str, Any]] = {}
    for job in jobs:
        sizes = "x".join(str(job["mesh"][axis]) for axis in ("data", "fsdp", "tensor"))
        topology = job["topology"].replace(":", "-")
        name = f"{_short(job['student'])}-{topology}-mesh-{sizes}-rows-{job['batch_size']}"
        steps = {step["name"]: step for step in result.get(name, {"steps": []})["steps"]}
        for step in job["steps"]:
            steps[step["name"]] = {field: step[field] for field in _FIELDS}
        order = [steps[step] for step in STEPS if step in steps]
        result[name] = job | {"steps": order}
    students = [config.student.model for config in configs()]

    def place(item: tuple[str, dict[str, Any]]) -> tuple[int, str]:
        student = item[1]["student"]
        return students.index(student) if student in students else len(students), item[0]

    return dict(sorted(result.items(), key=place))


def compiled_table(found: list[dict[str, Any]]) -> list[str]:
    """Memory, work and traffic of every compiled step; times are lower bounds, by peaks alone."""
    rows = [
        "| student | devices | data × fsdp × tensor | rows | step | GB of HBM | "
        "largest parts, GB | TFLOP | sent, GB | compute, ms | links, ms |",
        "| --- " * 11 + "|",
    ]
    for job in found:
        device = devices.lookup(job["device_kind"])
        assert device is not None
        mesh = job["mesh"]
        count = mesh["data"] * mesh["fsdp"] * mesh["tensor"]
        for step in job["steps"]:
            need = step["peak_bytes"] + step["beside_bytes"]
            verdict = "" if step["fits"] else " (does not fit)"
            parts = sorted(step["where"].items(), key=lambda item: -item[1])[:3]
            largest = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts)
            compute = step["flops"] / count / device.peak_flops * 1e3
            links = step["sent_bytes"] / device.link_bandwidth * 1e3
            sent = f"{step['sent_bytes'] / 1e9:.2f} | {compute:.2f} | {links:.2f}"
            if step["counted"] is None:
                sent = f"| {compute:.2f} | "
            rows.append(
                f"| {_short(job['student'])} | {job['topology']} | {mesh['data']} × {mesh['fsdp']} "
                f"× {mesh['tensor']} | {job['batch_size']} | {step['name']} | {need / 1e9:.2f} of "
                f"{device.hbm_bytes / 1e9:.1f}{verdict} | {largest} | {step['flops'] / 1e12:.2f} "
                f"| {sent} |"
            )
    return rows


def model_table(found: list[dict[str, Any]]) -> list[str]:
    """The model's figures over those of compiled train steps."""
    rows = [
        "| student | devices | data × fsdp × tensor | rows | operations: compiler / counted | "
        "operations: model / counted | sent: model / compiled |",
        "| --- " * 7 + "|",
    ]
    for job in found:
        for step in job["steps"]:
            if step["name"] != "train" or step["counted"] is None:
                continue
            mesh, size = job["mesh"], job["batch_size"]
            model, lengths = job["student"], job["lengths"]
            options = {"remat": job["remat"], "lora": job["lora"]}
            modelled = train_flops(model, size, *lengths, **options) / step["flops"]
            parameters = matrix_parameters(model)
            sent = train_sent(mesh, parameters, 0 if job["lora"] else parameters)
            sent += activations_sent(model, mesh, size, *lengths)
            ratio = f"{sent / step['sent_bytes']:.2f}" if sent and step["sent_bytes"] else ""
            rows.append(
                f"| {_short(model)} | {job['topology']} | {mesh['data']} × {mesh['fsdp']} × "
                f"{mesh['tensor']} | {size} | {step['counted']:.2f} | {modelled:.2f} | {ratio} |"
            )
    return rows


def gpu_table(found: list[dict[str, Any]]) -> list[str]:
    """Memory on one GPU: arguments and gradients exactly, temporaries as one TPU chip's.

    Where the step was compiled for many chips alone, a chip's temporaries times the chips that have
    other rows or other heads are an upper bound, "≤": what chips have in common is counted often.
    """
    gpu = devices.DEVICES[_GPU]
    rows = [
        "| student | step | parameters | optimiser state | gradients | held beside | without "
        "activations | activations of one chip | all, GB | fits |",
        "| --- " * 10 + "|",
    ]
    temporaries: dict[tuple[str, str, int], dict[int, float]] = {}
    for job in found:
        chips = int(np.prod([*job["mesh"].values()]))
        for step in job["steps"]:
            if step["counted"] is not None:
                made = step["where"]["activations"] + step["where"]["logits"]
                key = (job["student"], step["name"], job["batch_size"])
                temporaries.setdefault(key, {})[chips] = chips * made
    for config in configs():
        config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, 1, 1
        run = make_job(config, jax.devices()[:1])
        for step in job_steps(run, ("train", "fit")):
            known = _without_activations(step)
            base = sum(known.values())
            key = (config.student.model, step.name, config.distill.batch_size)
            chips, made = min(temporaries.get(key, {0: 0.0}).items())
            total = base + made
            verdict = "yes" if fits(int(total), gpu.hbm_bytes) else "no"
            if fits(int(base), gpu.hbm_bytes):
                if not chips:
                    verdict = "not compiled"
                elif chips > 1 and verdict == "no":
                    verdict = "not shown"
            shown = " | ".join(f"{size / 1e9:.1f}" for size in known.values())
            bound = "≤ " if chips > 1 else ""
            activations = f"{bound}{made / 1e9:.1f}" if chips else ""
            rows.append(
                f"| {_short(config.student.model)} | {step.name} | {shown} | {base / 1e9:.1f} | "
                f"{activations} | {bound}{total / 1e9:.1f} | {verdict} |"
            )
    return rows


def _without_activations(step: Step) -> dict[str, int]:
    return {
        "parameters": bytes_on_a_device(step.parts["parameters"]),
        "optimiser state": bytes_on_a_device(step.parts["optimiser state"]),
        "gradients": bytes_on_a_device(step.gradients),
        "beside": bytes_on_a_device(step.beside),
    }


# Meshes and rows of a batch that a device count is given: data, fsdp, tensor, rows.
_SHAPES = {16: (1, 4, 4, 4), 256: (16, 16, 1, 256)}
_SHAPES_OF_SMALL = {16: (16, 1, 1, 32), 256: (256, 1, 1, 256)}
# Tokens of prompt and target: those of GSM8K, the longest of the configurations, LLaMA's limit.
_CONTEXTS = ((60, 162), (256, 512), (512, 1536))


def step_table() -> list[str]:
    """Lower bounds of a train step's time by the model, against devices, student and context."""
    rows = [
        "| student | chips | data × fsdp × tensor | rows | prompt + target | compute, ms | "
        "memory, ms | links, ms | bound by |",
        "| --- " * 9 + "|",
    ]
    device = devices.DEVICES["TPU v5 lite"]
    for config in configs():
        model = config.student.model
        options = {"remat": config.student.remat, "lora": config.student.lora.rank}
        shapes = _SHAPES_OF_SMALL if config.mesh.data == -1 else _SHAPES
        parameters = matrix_parameters(model)
        trained = 0 if options["lora"] else parameters
        for chips, (data, fsdp, tensor, size) in shapes.items():
            mesh = {"data": data, "fsdp": fsdp, "tensor": tensor}
            for lengths in _CONTEXTS:
                flops = train_flops(model, size, *lengths, **options)
                sent = train_sent(mesh, parameters, trained)
                sent += activations_sent(model, mesh, size, *lengths)
                seconds = {
                    "compute": flops / chips / device.peak_flops,
                    "memory": train_traffic(model, mesh, size, *lengths, **options)
                    / device.hbm_bandwidth,
                    "links": sent / device.link_bandwidth,
                }
                shown = " | ".join(f"{value * 1e3:.1f}" for value in seconds.values())
                rows.append(
                    f"| {_short(model)} | {chips} | {data} × {fsdp} × {tensor} | {size} | "
                    f"{lengths[0]} + {lengths[1]} | {shown} | "
                    f"{max(seconds, key=lambda key: seconds[key])} |"
                )
    return rows


def plan_table() -> list[str]:
    """An epoch and a scoring pass of a billion rationale tokens, by the model."""
    rows = [
        "| student | chips | scoring, min | an epoch of distillation, min | tokens of a batch at "
        "which links take as long as compute |",
        "| --- " * 5 + "|",
    ]
    question, rationale, rest = _LENGTHS
    examples = _RATIONALE_TOKENS / rationale
    device = devices.DEVICES["TPU v5 lite"]
    for config in configs():
        model = config.student.model
        target = rationale + rest
        options = {"remat": config.student.remat, "lora": config.student.lora.rank}
        row = train_flops(model, 1, question, target, **options)
        parameters = matrix_parameters(model)
        trained = 0 if options["lora"] else parameters
        for chips in (16, 256):
            rate = chips * device.peak_flops * _SHARE_OF_PEAK
            score = examples * sum(forward_products(model, question, target)) / rate / 60
            epoch = examples * row / rate / 60
            mesh = {"data": 1, "fsdp": chips, "tensor": 1}
            links = train_sent(mesh, parameters, trained) / device.link_bandwidth
            tokens = links * rate / row * (question + target)
            shown = f"{score:.1f} | {epoch:.1f} | {tokens:,.0f}"
            rows.append(f"| {_short(model)} | {chips} | {shown} |")
    return rows


def _short(model: str) -> str:
    return model.rsplit("/", 1)[-1]


def main(argv: list[str]) -> None:
    """Prints the tables."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    found = read_compiled(_COMPILED.value) if _COMPILED.value else []
    jobs = merged([*read_compiled(_KEPT, "*.json"), *found])
    if tables.WRITE.value:
        for name, job in jobs.items():
            files.write_json(_KEPT / f"{name}.json", job)
    found = list(jobs.values())
    made = {
        "compiled": compiled_table(found),
        "model": model_table(found),
        "gpu": gpu_table(found),
        "steps": step_table(),
        "plan": plan_table(),
    }
    for name, rows in made.items():
        print("\n".join(rows))
        if tables.WRITE.value:
            tables.put("docs/scale.md", name, rows)


if __name__ == "__main__":
    app.run(main)
